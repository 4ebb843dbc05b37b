# SPDX-License-Identifier: GPL-2.0-or-later
# bash completion of sfctl. Commands and options come from `sfctl help --names`, names from the running daemon, so that
# this file knows none of them.

# Prints the value of a global option on the command line, so that names come from the same daemon.
_sfctl_socket()
{
    local i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -s | --socket)
            printf '%s' "${COMP_WORDS[i + 1]}"
            return
            ;;
        esac
    done
}

# Sets COMPREPLY to the words of $1 (separated by blanks or newlines) that start with $2.
_sfctl_words()
{
    local IFS=$' \t\n'
    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2")
}

_sfctl_files()
{
    compopt -o filenames 2>/dev/null
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$1")
}

# Values of an option whose argument is called $1 in its help.
_sfctl_option_value()
{
    local cur=$2
    case $1 in
    PATH | FILE | DISK) _sfctl_files "$cur" ;;
    DIR)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        ;;
    TICKET) _sfctl_words "$("${ctl[@]}" tickets -q 2>/dev/null)" "$cur" ;;
    WHEN) _sfctl_words "auto always never" "$cur" ;;
    ACCEL) _sfctl_words "auto kvm tcg" "$cur" ;;
    NET) _sfctl_words "none user" "$cur" ;;
    SIZE) _sfctl_words "512M 1G 2G 4G" "$cur" ;;
    TIME) _sfctl_words "10s 1m 10m" "$cur" ;;
    esac
}

# Arguments of a command, of the kinds $1 (words of the table in the command's source).
_sfctl_arguments()
{
    local kind words="" cur=$2 files=
    for kind in $1; do
        case $kind in
        vm) words+=" $("${ctl[@]}" list -q 2>/dev/null)" ;;
        ticket) words+=" $("${ctl[@]}" tickets -q 2>/dev/null)" ;;
        host) words+=" $("${ctl[@]}" host list -q 2>/dev/null)" ;;
        snapshot) words+=" $("${ctl[@]}" snapshot list -q 2>/dev/null)" ;;
        file) files=1 ;;
        esac
    done
    _sfctl_words "$words" "$cur"
    if [[ -n $files ]]; then
        _sfctl_files "$cur"
    fi
}

_sfctl()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command="" kinds="" options="" line socket i nargs=0
    local -A values=()
    local -a ctl=("${COMP_WORDS[0]}")
    COMPREPLY=()

    socket=$(_sfctl_socket)
    if [[ -n $socket ]]; then
        ctl+=(--socket "$socket")
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -s | --socket | --color) ((i++)) ;;
        -*) ;;
        *)
            command=${COMP_WORDS[i]}
            break
            ;;
        esac
    done

    while IFS= read -r line; do
        case $line in
        "args "*) kinds=${line#args } ;;
        --*=*)
            values[${line%%=*}]=${line#*=}
            options+=" ${line%%=*}"
            ;;
        *) options+=" $line" ;;
        esac
    done < <("${COMP_WORDS[0]}" help --names ${command:+"$command"} 2>/dev/null)

    if [[ -z $command ]]; then
        case $prev in
        -s | --socket) _sfctl_files "$cur" ;;
        --color) _sfctl_option_value WHEN "$cur" ;;
        *)
            if [[ $cur == -* ]]; then
                _sfctl_words "--socket --json --color --help --version" "$cur"
            else
                _sfctl_words "$options" "$cur"
            fi
            ;;
        esac
        return
    fi
    if [[ $command == help ]]; then
        _sfctl_words "$("${COMP_WORDS[0]}" help --names 2>/dev/null)" "$cur"
        return
    fi
    if [[ $prev == -* && -n ${values[$prev]} ]]; then
        _sfctl_option_value "${values[$prev]}" "$cur"
        return
    fi
    if [[ $cur == -* ]]; then
        _sfctl_words "$options" "$cur"
        return
    fi
    # "show,save vm file": the first argument is one of the words before the first blank.
    if [[ $kinds == *,* ]]; then
        for ((i++; i < COMP_CWORD; i++)); do
            [[ ${COMP_WORDS[i]} == -* ]] || ((nargs++))
        done
        if ((nargs == 0)); then
            kinds=${kinds%% *}
            _sfctl_words "${kinds//,/ }" "$cur"
            return
        fi
        kinds=${kinds#* }
    fi
    _sfctl_arguments "$kinds" "$cur"
}

complete -F _sfctl sfctl
