# Completion of policyctl for bash: commands, options, and the names of accounts, which the running daemon is asked for.
# Install as /usr/local/share/bash-completion/completions/policyctl; the README says how. It needs no package.
#
# An account may be called anything: names are only ever compared, and quoted with %q. Nothing here is evaluated, and
# compgen -W, which would expand `$(…)`, is not used.

# Set _policyctl_words to the words of the line up to the cursor without their quotes, _policyctl_quote to the quote
# that is open, and _policyctl_head to how much of the last word readline leaves alone: all up to its last character of
# COMP_WORDBREAKS, and with that, unless it is an @. Fails where the last word has quotes that readline's rules are too
# odd for.
_policyctl_split() {
    local line=${COMP_LINE:0:COMP_POINT} char word='' started='' closed='' i
    _policyctl_words=() _policyctl_quote='' _policyctl_head=''
    for ((i = 0; i < ${#line}; i++)); do
        char=${line:i:1}
        if [[ $_policyctl_quote == "'" ]]; then
            if [[ $char == "'" ]]; then _policyctl_quote='' closed=1; else word+=$char; fi
        elif [[ $_policyctl_quote == '"' ]]; then
            case $char in
                '"') _policyctl_quote='' closed=1 ;;
                \\) if [[ ${line:i+1:1} == [\$\`\"\\] ]]; then ((++i)); fi; word+=${line:i:1} ;;
                *) word+=$char ;;
            esac
        else
            case $char in
                [[:blank:]])
                    if [[ -n $started ]]; then _policyctl_words+=("$word"); fi
                    word='' started='' closed='' _policyctl_head=''
                    continue
                    ;;
                \' | \") if [[ -n $started ]]; then closed=1; fi; _policyctl_quote=$char ;;
                \\) ((++i)); word+=${line:i:1} ;;
                @) if [[ $COMP_WORDBREAKS == *@* ]]; then _policyctl_head=$word; fi; word+=$char ;;
                *) word+=$char; if [[ $COMP_WORDBREAKS == *"$char"* ]]; then _policyctl_head=$word; fi ;;
            esac
        fi
        started=1
    done
    _policyctl_words+=("$word")
    [[ -z $closed ]]
}

_policyctl() {
    local _policyctl_words _policyctl_quote _policyctl_head kind candidate i
    COMPREPLY=()
    _policyctl_split || return 0
    {
        read -r kind || return 0
        if [[ $kind == files ]]; then
            compopt -o default 2>/dev/null
            return 0
        fi
        while IFS= read -r candidate; do
            candidate=${candidate%%$'\t'*}
            case $_policyctl_quote in
                "'") if [[ $candidate == *\'* ]]; then continue; fi ;;
                '"') if [[ $candidate == *[\$\`\"\\!]* ]]; then continue; fi ;;
                *) printf -v candidate %q "${candidate:${#_policyctl_head}}" ;;
            esac
            COMPREPLY+=("$candidate")
        done
    } < <(command policyctl __complete "${_policyctl_words[@]:1}" 2>/dev/null </dev/null)
}

complete -F _policyctl policyctl
