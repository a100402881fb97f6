"""What runs inside a virtual machine, and the language it speaks with the host.

    protocol   frames, the strict parser, flow control: used by both ends
    agent      /init of the initrd, PID 1 of the guest: boots, then serves sessions
    boot       modules, disks, overlay root, the mounts an application expects
    virtioport, netport  the agent's end of the port on virtio and on emulated hardware
    configure  what the host's CONFIG asks: name, clock, network, files, shares
    init       the image's own init as PID 1
    program    a program of the guest, run to its end
    renew      a fork becomes somebody else
    settling   when a system that boots is up and quiet
    session    one process in the guest: pipes or a terminal, signals, exit status
    identity   who a process is to be (shared with the container runtime)
    jsontext, lean       JSON, signals and deques without the weight of their packages
    archive    a path as a tar stream (shared with the container runtime)
    manifest   which modules the initrd must carry

Standard library only, and little of it: under emulation every import costs ten times what it
costs on the host. All imports stand at the top of their modules, so that importing the modules
named in ``manifest`` once, in a clean process, lists everything the initrd must carry.
"""
