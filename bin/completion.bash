# SPDX-License-Identifier: Apache-2.0
# Completion of vllm-fleet in bash; put this into ~/.bashrc: source <(vllm-fleet completion)
_vllm_fleet() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} playbooks done
  playbooks=$(readlink -f -- "$(type -P -- "${COMP_WORDS[0]}")")
  playbooks=${playbooks%/bin/*}/playbooks
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    mapfile -t COMPREPLY < <(cd -- "$playbooks" && compgen -W "$(ls -- *.yml | sed 's/\.yml$//; /^rollout$/d') help completion" -- "$word")
    return
  fi
  case $before in
    -i | --inventory)
      compopt -o filenames 2>/dev/null
      # Without a word yet: the inventories of this folder, else those of the clone.
      [ -n "$word" ] || [ ! -d inventory ] || word=inventory/
      [ -n "$word" ] || word=${playbooks%/*}/inventory/
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      ;;
    -t | --tags | --skip-tags)
      done=${word%"${word##*,}"}
      mapfile -t COMPREPLY < <(compgen -P "$done" -W 'preflight prepare stage rollout verify watchdog' -- "${word##*,}")
      ;;
    *)
      case $word in
        -*) mapfile -t COMPREPLY < <(compgen -W '-i -e -l -v --inventory --limit --tags --skip-tags --check --diff --extra-vars
              --forks --ask-vault-pass --ask-become-pass --list-hosts --list-tags --list-tasks' -- "$word") ;;
        *)
          compopt -o filenames 2>/dev/null
          mapfile -t COMPREPLY < <(compgen -f -- "$word")
          ;;
      esac
      ;;
  esac
}
complete -F _vllm_fleet vllm-fleet
