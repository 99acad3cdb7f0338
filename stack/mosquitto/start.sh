#!/bin/sh
# Starts Mosquitto. Writes the passwords of the environment, hashed, into a private file. The file is written at each
# start, so that a changed .env applies.
set -eu

configuration=${MOSQUITTO_CONFIG:-/mosquitto/config}
data=${MOSQUITTO_DATA:-/mosquitto/data}

umask 077
rm -f "$data/passwd"
touch "$data/passwd"
mosquitto_passwd -b "$data/passwd" runner "$MQTT_RUNNER_PASSWORD"
mosquitto_passwd -b "$data/passwd" operator "$MQTT_OPERATOR_PASSWORD"
# A private copy: Mosquitto warns of an access list that other users may read.
cat "$configuration/acl" > "$data/acl"
if [ "$(id -u)" = 0 ]; then
    # Mosquitto starts as root and continues as this user.
    chown mosquitto: "$data/passwd" "$data/acl"
fi

exec mosquitto -c "$configuration/mosquitto.conf"
