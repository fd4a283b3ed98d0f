"""What each shell needs to ask `python -m toolkit __complete WORDS...` at every Tab."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass

COMMAND = "__complete"
"""The first argument when a shell asks; the words typed so far follow."""
PYTHON = "python -P -m toolkit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell:
    """One shell."""

    install: str
    """What to type, or to write into its start file; {python} is the command."""
    text: str
    """The script; @ASK@ asks, @RUN@ runs a command."""

    def script(self) -> str:
        """The script for this interpreter."""
        run = f"{shlex.quote(sys.executable)} -P -m toolkit"
        return self.text.replace("@ASK@", f"{run} {COMMAND}").replace("@RUN@", run)


BASH = r"""# Scalebook in bash. In ~/.bashrc: eval "$(python -P -m toolkit completion bash)"
command -v scalebook >/dev/null || scalebook() { @RUN@ "$@"; }
_scalebook() {
    local IFS=$'\n' word=${COMP_WORDS[COMP_CWORD]}
    local lines=($(@ASK@ "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    COMPREPLY=()
    case ${lines[0]} in
        :file | :notebook) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")) ;;
        :folder) compopt -o filenames; COMPREPLY=($(compgen -d -- "$word")) ;;
        *) COMPREPLY=("${lines[@]:1}"); COMPREPLY=("${COMPREPLY[@]%%$'\t'*}") ;;
    esac
}
complete -F _scalebook scalebook
"""
ZSH = r"""# Scalebook in zsh. In ~/.zshrc: eval "$(python -P -m toolkit completion zsh)"
(( $+commands[scalebook] )) || scalebook() { @RUN@ "$@" }
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_scalebook() {
    local line
    local -a lines found
    lines=("${(@f)$(@ASK@ "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    case ${lines[1]} in
        :file) _files ;;
        :notebook) _files -g '*.ipynb' ;;
        :folder) _files -/ ;;
        *)
            for line in "${(@)lines[2,-1]}"; do
                found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
            done
            _describe scalebook found
            ;;
    esac
}
compdef _scalebook scalebook
"""
FISH = r"""# Scalebook in fish. In ~/.config/fish/config.fish: python -P -m toolkit completion fish | source
command -sq scalebook; or function scalebook; @RUN@ $argv; end
function __scalebook_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l lines (@ASK@ $words[2..-1] "$current" 2>/dev/null)
    switch "$lines[1]"
        case ':file' ':notebook'
            __fish_complete_path "$current"
        case ':folder'
            __fish_complete_directories "$current"
        case '*'
            set -e lines[1]
            printf '%s\n' $lines
    end
end
complete -c scalebook -f -a '(__scalebook_complete)'
"""
SHELLS = {
    "bash": Shell(install='eval "$({python} completion bash)"     # in ~/.bashrc', text=BASH),
    "zsh": Shell(install='eval "$({python} completion zsh)"      # in ~/.zshrc', text=ZSH),
    "fish": Shell(install="{python} completion fish | source    # in ~/.config/fish/config.fish", text=FISH),
}
