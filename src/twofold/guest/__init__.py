"""What runs inside a virtual machine, and the language it speaks with the host.

    protocol   frames, the strict parser, flow control: used by both ends
    agent      /init of the initrd, PID 1 of the guest: boots, then serves sessions
    boot       modules, disks, overlay root, the mounts an application expects
    configure  what the host's CONFIG asks: name, clock, network, files, shares
    session    one process in the guest: pipes or a terminal, signals, exit status
    identity   who a process is to be (shared with the container runtime)
    archive    a path as a tar stream (shared with the container runtime)
    manifest   which modules the initrd must carry

Standard library only, and little of it: under emulation every import costs ten times what it
costs on the host. All imports stand at the top of their modules, so that importing the modules
named in ``manifest`` once, in a clean process, lists everything the initrd must carry.
"""
