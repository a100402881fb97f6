"""What an instance uses and which processes it has, as the API shows them. No behaviour."""

from pydantic import BaseModel, Field

from twofold.model.instance import Isolation, State


class GuestUse(BaseModel):
    """What the guest behind a VM wall says of itself."""

    memory_bytes: int = Field(description="in use, by the guest's own account")
    memory_total_bytes: int
    processes: int


class Use(BaseModel):
    """One sample. Counters (``cpu_s``, network, disk) grow; a rate is the difference of two
    samples over that of their ``clock_s``. Null is what this host cannot tell."""

    id: str
    name: str
    isolation: Isolation
    state: State
    at: str
    clock_s: float = Field(description="the host's monotonic clock at the sample")
    cpu_s: float | None = Field(default=None, description="processor time used since the start")
    cpus: float | None = Field(default=None, description="limit in force; null: none")
    memory_bytes: int | None = Field(
        default=None, description="host memory that it holds, without the cache of files"
    )
    cache_bytes: int | None = Field(default=None, description="cache of files, given back at need")
    memory_limit_bytes: int | None = None
    pids: int | None = Field(default=None, description="processes and threads on the host")
    pids_limit: int | None = None
    network_received_bytes: int | None = None
    network_sent_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_written_bytes: int | None = None
    guest: GuestUse | None = Field(default=None, description="of a virtual machine that answers")


class ProcessInfo(BaseModel):
    """A process inside. ``pid`` and ``parent`` are the numbers that are true inside."""

    pid: int
    host_pid: int | None = Field(default=None, description="of a container: its number outside")
    parent: int
    user: str
    state: str = Field(description="as in ps: R, S, D, T …", examples=["S"])
    threads: int
    cpu_s: float = Field(description="processor time used, in seconds")
    age_s: float
    memory_bytes: int = Field(description="resident")
    command: str
