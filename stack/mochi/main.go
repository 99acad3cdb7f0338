// Runs the MQTT 5 broker Mochi on 127.0.0.1, with capabilities from the command line as JSON.
//
//	mochi 1883 '{"maximum_qos": 1, "server_keepalive": 2}'
//
// The names are those of mqtt.Capabilities; server_keepalive is the interval in seconds that CONNACK imposes.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

type settings struct {
	*mqtt.Capabilities
	ServerKeepalive uint16 `json:"server_keepalive"`
}

// conformance corrects the two points in which Mochi 2.7.9 deviates from MQTT 5.
type conformance struct {
	mqtt.HookBase
	settings settings
}

func (h *conformance) ID() string {
	return "conformance"
}

func (h *conformance) Provides(b byte) bool {
	return bytes.IndexByte([]byte{mqtt.OnConnect, mqtt.OnPacketEncode}, b) >= 0
}

func (h *conformance) OnConnect(client *mqtt.Client, _ packets.Packet) error {
	if h.settings.ServerKeepalive > 0 {
		client.State.Keepalive = h.settings.ServerKeepalive
		client.State.ServerKeepalive = true
	}
	return nil
}

func (h *conformance) OnPacketEncode(_ *mqtt.Client, packet packets.Packet) packets.Packet {
	switch packet.FixedHeader.Type {
	case packets.Puback:
		// Mochi acknowledges QoS 1 with the SUBACK code 0x01, "Granted QoS 1", which PUBACK does not have:
		// https://github.com/mochi-mqtt/server/issues/474.
		if packet.ReasonCode == packets.CodeGrantedQos1.Code {
			packet.ReasonCode = packets.CodeSuccess.Code
		}
	case packets.Connack:
		h.announce(&packet.Properties)
	}
	return packet
}

// announce adds the capabilities that Mochi enforces without a property in CONNACK [MQTT-3.2.2.3].
func (h *conformance) announce(properties *packets.Properties) {
	capabilities := h.settings.Capabilities
	properties.MaximumPacketSize = capabilities.MaximumPacketSize
	properties.TopicAliasMaximum = capabilities.TopicAliasMaximum
	properties.RetainAvailable, properties.RetainAvailableFlag = capabilities.RetainAvailable, true
	properties.WildcardSubAvailable, properties.WildcardSubAvailableFlag = capabilities.WildcardSubAvailable, true
	properties.SubIDAvailable, properties.SubIDAvailableFlag = capabilities.SubIDAvailable, true
	properties.SharedSubAvailable, properties.SharedSubAvailableFlag = capabilities.SharedSubAvailable, true
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

func run(port, text string) error {
	wanted := settings{Capabilities: mqtt.NewDefaultServerCapabilities()}
	if err := json.Unmarshal([]byte(text), &wanted); err != nil {
		return err
	}
	server := mqtt.New(&mqtt.Options{Capabilities: wanted.Capabilities})
	tcp := listeners.NewTCP(listeners.Config{ID: "tcp", Address: net.JoinHostPort("127.0.0.1", port)})
	if err := errors.Join(
		server.AddHook(new(auth.AllowHook), nil),
		server.AddHook(&conformance{settings: wanted}, nil),
		server.AddListener(tcp),
	); err != nil {
		return err
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGINT, syscall.SIGTERM)
	if err := server.Serve(); err != nil {
		return err
	}
	<-stopped
	return server.Close()
}
