"""``twofold completion``: the script that teaches a shell to complete our words.

The scripts know nothing themselves: they ask ``twofold __complete``, which reads the parsers, so
they never go stale.
"""

from __future__ import annotations

import sys

from twofold.cli.arguments import Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

EXAMPLES = (
    "twofold completion bash > /etc/bash_completion.d/twofold",
    "twofold completion zsh > /usr/local/share/zsh/site-functions/_twofold",
    "twofold completion fish > ~/.config/fish/completions/twofold.fish",
)
DESCRIPTION = "Completes verbs, options, and the names of instances and images."

BASH = r"""# bash completion of twofold; made by: twofold completion bash
_twofold() {
    local line=${COMP_LINE:0:COMP_POINT} words current found
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    COMPREPLY=()
    while IFS= read -r found; do
        found=${found%%$'\t'*}
        # bash has split the word at ":" and "=": it wants the part after the last of them.
        case $current in
            *[:=]*) found=${found#"${current%"${current##*[:=]}"}"} ;;
        esac
        COMPREPLY+=("$found")
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
}
complete -o default -F _twofold twofold
"""

ZSH = r"""#compdef twofold
# zsh completion of twofold; made by: twofold completion zsh
_twofold() {
    local line
    local -a found
    while IFS= read -r line; do
        found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( $#found )); then _describe twofold found; else _files; fi
}
compdef _twofold twofold
"""

FISH = r"""# fish completion of twofold; made by: twofold completion fish
function __twofold_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    $before[1] __complete $before[2..-1] "$current" 2>/dev/null
end
complete -c twofold -a '(__twofold_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def configure(parser: Parser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS), help="which shell")


def run(args: argparse.Namespace) -> int:
    sys.stdout.write(SCRIPTS[args.shell])
    return 0
