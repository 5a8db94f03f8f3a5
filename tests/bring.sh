# Shell: what the scripts of this folder bring for their tests. Sourced by them, after `set`.
#
# The Postgres server lives only as long as the script, whatever ends it.

readonly UNAVAILABLE=69

say() { printf 'tests/%s: %s\n' "${0##*/}" "$*" >&2; }

unavailable() {
    say "$*"
    exit "$UNAVAILABLE"
}

# Sets `postgres_bin` to the folder of the newest server; Debian keeps it off the PATH.
find_postgres() {
    local initdb
    for initdb in $(printf '%s\n' /usr/lib/postgresql/*/bin/initdb | sort -rV) \
        "$(command -v initdb || true)"; do
        postgres_bin=$(dirname "$initdb")
        [[ -x $postgres_bin/initdb && -x $postgres_bin/postgres ]] && return
    done
    return 1
}

install_packages() {
    local command="apt-get install --yes --no-install-recommends $*"
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        unavailable "missing on this machine: $*. On Debian: sudo $command"
    fi
    say "installing: $*"
    # RUNLEVEL=1 keeps Debian from starting a database server of its own.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 bash -c "apt-get update -qq && $command" >&2 ||
        unavailable "could not install: $*"
}

# Starts a throwaway server on a free port of 127.0.0.1 and sets TEST_DATABASE_URL.
start_postgres() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/token-broker-test.XXXXXX")
    local password data=$scratch/data log=$scratch/log
    password=$(random_hex)
    printf '%s' "$password" >"$scratch/password"

    # Postgres refuses to run as root.
    local as_user=()
    if ((EUID == 0)); then
        local user=postgres
        id -u postgres >/dev/null 2>&1 || user=nobody
        chown -R "$user" "$scratch"
        as_user=(setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups)
    fi
    # Where there is setpriv, the server ends with this script even when that is killed outright.
    if command -v setpriv >/dev/null; then
        as_user=("${as_user[@]:-setpriv}" --pdeathsig=QUIT)
    fi

    # Names sort by the rules of a language, as in many a real database: an order that only holds
    # byte by byte shows. Encoding and provider are Debian 12's (Postgres 15) and later.
    (cd "$scratch" && "${as_user[@]}" "$postgres_bin/initdb" --pgdata="$data" --username=tests \
        --pwfile="$scratch/password" --auth=scram-sha-256 --encoding=UTF8 --locale=C \
        --locale-provider=icu --icu-locale=en-US --no-sync) >"$log" 2>&1 || {
        cat "$log" >&2
        unavailable "$postgres_bin/initdb failed"
    }
    rm "$scratch/password"

    local port attempt
    for attempt in 1 2 3; do
        port=$(free_port)
        # Nothing here outlives the script, so nothing waits for a disk.
        "${as_user[@]}" "$postgres_bin/postgres" -D "$data" -p "$port" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 \
            -c fsync=off -c synchronous_commit=off -c full_page_writes=off >"$log" 2>&1 &
        postgres_pid=$!
        if answers "$port"; then
            export TEST_POSTGRES_BIN=$postgres_bin
            export TEST_DATABASE_URL="postgres://tests:$password@127.0.0.1:$port/postgres"
            return
        fi
        stop_postgres
        say "Postgres did not start on port $port (attempt $attempt)"
    done
    cat "$log" >&2
    unavailable 'Postgres does not start'
}

# Waits up to 30 seconds for the server to accept connections, or for its end.
answers() {
    local tries
    for ((tries = 0; tries < 300; tries++)); do
        kill -0 "$postgres_pid" 2>/dev/null || return
        "$postgres_bin/pg_isready" --quiet --host=127.0.0.1 --port="$1" && return
        sleep 0.1
    done
    return 1
}

stop_postgres() {
    [[ -n ${postgres_pid:-} ]] || return 0
    # An immediate shutdown; the data is of no use any more.
    kill -QUIT "$postgres_pid" 2>/dev/null || true
    wait "$postgres_pid" 2>/dev/null || true
    postgres_pid=
}

clean_up() {
    stop_postgres
    [[ -z ${scratch:-} ]] || rm -rf "$scratch"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

random_hex() { python3 -c 'import secrets; print(secrets.token_hex(16))'; }

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
