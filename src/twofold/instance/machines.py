"""What every virtual machine of this host shares: kernel bundle, QEMU's jail, the accelerator.

Made when the first VM needs it, as steps of that operation, and remembered. The accelerator is
what the probe measured, never what a device node promises.
"""

import asyncio
from typing import Any

from twofold.hypervisor import errand, foreign, host_tsc, jail, kvm_probe, qmp, targets
from twofold.hypervisor import kernel as bundles
from twofold.hypervisor.foreign import Archive
from twofold.image.sources import aptsources, bootstrap
from twofold.instance import architecture
from twofold.instance.collaborators import MachineParts
from twofold.model.paths import Paths
from twofold.operations import Operation, in_thread
from twofold.storage import disk

DATA_DISK_BYTES = 16 << 30  # sparse: what a guest never writes costs nothing


def _sources() -> list[str]:
    """Where this host gets Debian from. Reads its apt sources."""
    return aptsources.lines_for(aptsources.read_host(), bootstrap.DEFAULT_SUITE)


class MachineShop:
    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._one_at_a_time = asyncio.Lock()
        self._kvm: kvm_probe.KvmProbe | None = None

    async def parts(
        self, operation: Operation, *, kernel: bool = True, arch: str | None = None
    ) -> MachineParts:
        """Quick when all is there: three looks at the disk. Raises Unsupported without QEMU."""
        other = architecture.foreign(arch)
        if other:
            return await self._emulated(operation, other, kernel=kernel)
        async with self._one_at_a_time:
            jail_dir = await in_thread(
                operation,
                "Preparing QEMU",
                lambda tell: jail.ensure(self._paths.cache, tell),
                quick=True,
            )
            bundle = None
            if kernel:
                bundle = await in_thread(
                    operation,
                    "Preparing the guest kernel",
                    lambda tell: bundles.ensure(self._paths.kernels, tell),
                    quick=True,
                )
            if self._kvm is None:
                cache = f"{self._paths.cache}/kvm.json"
                self._kvm = await asyncio.to_thread(kvm_probe.probe, cache)
                if not self._kvm.usable:
                    operation.warn(
                        f"virtual machines run emulated: {self._kvm.reason}", "twofold doctor"
                    )
            tsc_khz = await asyncio.to_thread(host_tsc.frequency_khz, f"{self._paths.cache}/tsc")
        return MachineParts(
            jail=jail_dir,
            boot=bundle.directory if bundle else "",
            disk="",
            accelerator="kvm" if self._kvm.usable else "tcg",
            accelerator_reason=self._kvm.reason,
            kernel=bundle.release if bundle else "",
            tsc_khz=tsc_khz,
        )

    async def _emulated(self, operation: Operation, other: str, *, kernel: bool) -> MachineParts:
        """Parts of a machine with another processor than this host's, beside the host's own."""
        foreign.require(other, own_os=not kernel)
        target = targets.get(other)
        archive = Archive(architecture=other, sources=_sources)
        async with self._one_at_a_time:
            jail_dir = await in_thread(
                operation,
                f"Preparing QEMU for {other}",
                lambda tell: jail.ensure(f"{self._paths.cache}/{other}", tell, target),
                quick=True,
            )
            bundle = None
            if kernel:
                bundle = await in_thread(
                    operation,
                    f"Preparing the guest kernel for {other}",
                    lambda tell: bundles.ensure(f"{self._paths.kernels}/{other}", tell, archive),
                    quick=True,
                )
        return MachineParts(
            jail=jail_dir,
            boot=bundle.directory if bundle else "",
            disk="",
            accelerator="tcg",
            accelerator_reason=f"the {other} processor is emulated: this host has none",
            kernel=bundle.release if bundle else "",
        )

    async def make_data_disk(self, path: str) -> None:
        await asyncio.to_thread(disk.data_disk, path, DATA_DISK_BYTES, self._paths.cache)

    async def pause(self, run_dir: str) -> None:
        await qmp.pause(f"{run_dir}/qmp.sock")

    async def resume(self, run_dir: str) -> None:
        await qmp.resume(f"{run_dir}/qmp.sock")

    async def status(self, run_dir: str) -> str:
        return await qmp.status(f"{run_dir}/qmp.sock")

    async def errand(self, run_dir: str, what: str, **words: Any) -> Any:
        return await errand.ask(f"{run_dir}/control.sock", what, words)
