# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# A plan is a list of steps, each a shell function. Scripts add steps, then run the plan: each step says "[i/n] what",
# for how long it has been running, and the last line of its log; a step that fails says which log to read and what to
# do. Every step function finds out by itself what is already done, so that a plan that was interrupted is simply run
# again. A step may call `note TEXT` to say in its result line what it found ("cached"), and write commands that only the
# person can run to $SF_DO before it fails.
#
# A step runs in a process group of its own (with set -e), so that an interrupt ends all that it started.

plan_what=()
plan_hint=()
plan_call=()
plan_pid=

# plan_add WHAT HINT FUNCTION [ARGUMENT...]: HINT says what a person can do when the step fails.
plan_add() {
    plan_what+=("$1")
    plan_hint+=("$2")
    plan_call+=("$(printf '%q ' "${@:3}")")
}

note() {
    printf '%s' "$*" > "$SF_NOTE"
}

plan_time() {
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

plan_last_line() {
    # Build tools redraw lines with \r; escape sequences would spoil the display.
    tail -c 2000 "$1" 2>/dev/null | tr '\r' '\n' | sed 's/\x1b\[[0-9;]*[A-Za-z]//g' | grep -av '^[[:space:]]*$' |
        tail -n 1
}

# plan_say_failure TITLE SECONDS LOG HINT
plan_say_failure() {
    printf '%s: FAILED after %s\n' "$1" "$(plan_time "$2")"
    tail -n 15 "$3" | sed 's/^/    | /'
    printf '  log:  %s\n' "$3"
    if [ -s "$SF_DO" ]; then
        printf '  do:   run these, then this script again:\n\n'
        cat "$SF_DO"        # as it is, to be copied
    elif grep -q 'No space left on device' "$3"; then
        printf '  do:   the disk is full: make room, or set SF_CACHE to a folder elsewhere; then run this again\n'
        df -h "$SF_CACHE" "$SF_ROOT" | sed 's/^/        /'
    else
        printf '  do:   %s\n' "$4"
    fi
}

plan_interrupted() {
    [ -n "$plan_pid" ] && kill -TERM -- "-$plan_pid" 2>/dev/null
    printf '\ninterrupted; what is done is kept: run the same command again\n' >&2
    exit 130
}

# plan_watch TITLE LOG: show how the step goes until it ends.
plan_watch() {
    local title=$1 log=$2 start=$SECONDS said=$SECONDS width
    local quiet_period=30   # seconds between lines when nobody sits at a terminal
    while kill -0 "$plan_pid" 2>/dev/null; do
        if [ -t 2 ]; then
            width=$(tput cols 2>/dev/null || echo 80)
            printf '\r\033[K%.*s' "$((width - 1))" \
                "$title  $(plan_time $((SECONDS - start)))  $(plan_last_line "$log")" >&2
        elif ((SECONDS - said >= quiet_period)); then
            said=$SECONDS
            printf '%s  %s  %.90s\n' "$title" "$(plan_time $((SECONDS - start)))" "$(plan_last_line "$log")" >&2
        fi
        sleep 0.2
    done
}

# plan_run: run all steps; logs go to SF_LOGS. Exits at the first that fails.
plan_run() {
    local i n=${#plan_what[@]} title log status start
    mkdir -p "$SF_LOGS"
    trap plan_interrupted INT TERM HUP
    for ((i = 0; i < n; i++)); do
        title="[$((i + 1))/$n] ${plan_what[i]}"
        log="$SF_LOGS/$(tr -cs 'a-z0-9\n' '-' <<< "${plan_what[i],,}").log"
        SF_NOTE=$log.note SF_DO=$log.do
        rm -f "$SF_NOTE" "$SF_DO"
        start=$SECONDS
        set -m
        # shellcheck disable=SC2294  # plan_call was quoted with %q
        (set -euo pipefail; eval "${plan_call[i]}") > "$log" 2>&1 < /dev/null &
        plan_pid=$!
        set +m
        plan_watch "$title" "$log"
        status=0
        wait "$plan_pid" || status=$?
        plan_pid=
        [ -t 2 ] && printf '\r\033[K' >&2
        if ((status != 0)); then
            plan_say_failure "$title" $((SECONDS - start)) "$log" "${plan_hint[i]}" >&2
            exit 1
        fi
        printf '%s: %s, %s\n' "$title" "$(cat "$SF_NOTE" 2>/dev/null || echo done)" \
            "$(plan_time $((SECONDS - start)))" >&2
    done
    trap - INT TERM HUP
    plan_what=() plan_hint=() plan_call=()
}
