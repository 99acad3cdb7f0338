#!/bin/sh
# Start Mosquitto with the passwords that the environment has, hashed, in a file that nobody else may read. They are
# written anew each time, so that a changed .env counts.
set -eu

configuration=${MOSQUITTO_CONFIG:-/mosquitto/config}
data=${MOSQUITTO_DATA:-/mosquitto/data}

umask 077
rm -f "$data/passwd"
touch "$data/passwd"
mosquitto_passwd -b "$data/passwd" runner "$MQTT_RUNNER_PASSWORD"
mosquitto_passwd -b "$data/passwd" operator "$MQTT_OPERATOR_PASSWORD"
# A copy, since Mosquitto distrusts an ACL that others may read, as a checkout's files can be.
cat "$configuration/acl" > "$data/acl"
if [ "$(id -u)" = 0 ]; then
    # It starts as root and goes on as this user.
    chown mosquitto: "$data/passwd" "$data/acl"
fi

exec mosquitto -c "$configuration/mosquitto.conf"
