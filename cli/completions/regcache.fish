# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_regcache_global_optspecs
    string join \n h/help V/version
end

function __fish_regcache_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_regcache_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_regcache_using_subcommand
    set -l cmd (__fish_regcache_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c regcache -n "__fish_regcache_needs_command" -s h -l help -d 'Print help'
complete -c regcache -n "__fish_regcache_needs_command" -s V -l version -d 'Print version'
complete -c regcache -n "__fish_regcache_needs_command" -f -a "doctor" -d 'Check whether this machine can cache registrations, and print commands that fix problems'
complete -c regcache -n "__fish_regcache_needs_command" -f -a "repro" -d 'Reproduce the bug: a naive cache moves stale bytes, and regcache does not'
complete -c regcache -n "__fish_regcache_needs_command" -f -a "run" -d 'Run a program under the preload shim, which caches its registrations'
complete -c regcache -n "__fish_regcache_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c regcache -n "__fish_regcache_using_subcommand doctor" -l commands -d 'Print only the commands that fix problems, one per line; run them in the root of the repository'
complete -c regcache -n "__fish_regcache_using_subcommand doctor" -l json -d 'Print the report as JSON, for scripts'
complete -c regcache -n "__fish_regcache_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c regcache -n "__fish_regcache_using_subcommand repro" -l rounds -d 'Set the number of transfers with each cache' -r
complete -c regcache -n "__fish_regcache_using_subcommand repro" -l watch -d 'Show the counts of both caches while they work, for this many seconds' -r
complete -c regcache -n "__fish_regcache_using_subcommand repro" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c regcache -n "__fish_regcache_using_subcommand run" -l stack -d 'Put the shim below this stack, in place of the stack\'s own cache' -r -f -a "ucx\t'UCX 1.13 or later, also below Open MPI'
libfabric\t'libfabric 1.14 or later, also below Open MPI and MPICH'"
complete -c regcache -n "__fish_regcache_using_subcommand run" -l shim -d 'Use this shim instead of the one that is installed with this tool' -r -F
complete -c regcache -n "__fish_regcache_using_subcommand run" -s e -l env -d 'Set an environment variable for the shim; repeat the option to set several' -r
complete -c regcache -n "__fish_regcache_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c regcache -n "__fish_regcache_using_subcommand help; and not __fish_seen_subcommand_from doctor repro run help" -f -a "doctor" -d 'Check whether this machine can cache registrations, and print commands that fix problems'
complete -c regcache -n "__fish_regcache_using_subcommand help; and not __fish_seen_subcommand_from doctor repro run help" -f -a "repro" -d 'Reproduce the bug: a naive cache moves stale bytes, and regcache does not'
complete -c regcache -n "__fish_regcache_using_subcommand help; and not __fish_seen_subcommand_from doctor repro run help" -f -a "run" -d 'Run a program under the preload shim, which caches its registrations'
complete -c regcache -n "__fish_regcache_using_subcommand help; and not __fish_seen_subcommand_from doctor repro run help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
