#!/bin/sh
# Runs three `bridle node` processes on this machine, for trial and development (`make cluster`).
#
#   deploy/cluster.sh start|status|stop BINARY
#
# Environment: PORT (the first Redis port, 6379; the others follow), HTTP_PORT (9121),
# CLUSTER_PORT (7201), DATA (./data/cluster), MEMORY (of each node, 256MiB: three share a machine),
# ARGS (further flags of `bridle node`).
set -eu

what=${1:?start, status or stop}
bridle=${2:?the binary}
port=${PORT:-6379}
http=${HTTP_PORT:-9121}
inner=${CLUSTER_PORT:-7201}
data=${DATA:-./data/cluster}
memory=${MEMORY:-256MiB}
nodes="0 1 2"
# Variables that the user must pass to make again.
given=""
[ "$port" = 6379 ] || given="$given PORT=$port"
[ "$http" = 9121 ] || given="$given HTTP_PORT=$http"
[ "$inner" = 7201 ] || given="$given CLUSTER_PORT=$inner"
[ "$data" = ./data/cluster ] || given="$given DATA=${data%/cluster}"
timeout=30

at() { echo "$(($1 + $2))"; }
pid_of() { cat "$data/$1.pid" 2>/dev/null || true; }
# The process id in the file may have been reused meanwhile.
runs() {
    pid=$(pid_of "$1")
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    [ ! -r "/proc/$pid/cmdline" ] || tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "node .*--data $data/$1 "
}
# For a process that has just started, which still has this script's command line for a moment.
has_ended() {
    pid=$(pid_of "$1")
    ! kill -0 "$pid" 2>/dev/null || { [ -r "/proc/$pid/cmdline" ] && [ -z "$(tr -d '\0' <"/proc/$pid/cmdline")" ]; }
}
is_ready() { "$bridle" admin --url "http://127.0.0.1:$(at "$http" "$1")" --json status 2>/dev/null | grep -q '"ready": true'; }

start() {
    mkdir -p "$data"
    metas=""
    for node in $nodes; do metas="$metas${metas:+,}127.0.0.1:$(at "$inner" "$node")"; done
    for node in $nodes; do
        if runs "$node"; then
            echo "node $node is already running (process $(pid_of "$node"))"
            continue
        fi
        # shellcheck disable=SC2086  # flags are split into words
        nohup "$bridle" node --metas "$metas" --listen "127.0.0.1:$(at "$inner" "$node")" --data "$data/$node" \
            --port "$(at "$port" "$node")" --http-port "$(at "$http" "$node")" --memory "$memory" ${ARGS:-} >>"$data/$node.log" 2>&1 </dev/null &
        echo $! >"$data/$node.pid"
    done
    waited=0
    for node in $nodes; do
        until is_ready "$node"; do
            if has_ended "$node"; then
                echo "node $node has ended; its log, $data/$node.log, ends:" >&2
                tail -n 5 "$data/$node.log" >&2
                exit 1
            fi
            if [ "$waited" -ge $((timeout * 10)) ]; then
                echo "node $node does not serve after $timeout s; see $data/$node.log" >&2
                exit 1
            fi
            sleep 0.1
            waited=$((waited + 1))
        done
    done
    echo "A cluster of three nodes; data and logs are in $data. Connect to any node:"
    for node in $nodes; do echo "  redis-cli -p $(at "$port" "$node")"; done
    echo "Then:  make cluster-status$given   make cluster-stop$given   $bridle admin --url http://127.0.0.1:$http nodes"
}

status() {
    for node in $nodes; do
        url="http://127.0.0.1:$(at "$http" "$node")"
        if runs "$node" && "$bridle" admin --url "$url" status && "$bridle" admin --url "$url" nodes && "$bridle" admin --url "$url" tables; then
            return
        fi
    done
    echo "no node of $data is running, or none answers; start them with: make cluster" >&2
    exit 1
}

stop() {
    for node in $nodes; do
        if runs "$node"; then kill -TERM "$(pid_of "$node")"; fi
    done
    for node in $nodes; do
        waited=0
        while runs "$node" && [ "$waited" -lt 600 ]; do
            sleep 0.1
            waited=$((waited + 1))
        done
        if runs "$node"; then
            echo "node $node (process $(pid_of "$node")) does not end; see $data/$node.log" >&2
            exit 1
        fi
        rm -f "$data/$node.pid"
    done
    echo "stopped; the data stays in $data"
}

case "$what" in
    start | status | stop) "$what" ;;
    *) echo "usage: deploy/cluster.sh start|status|stop BINARY" >&2; exit 2 ;;
esac
