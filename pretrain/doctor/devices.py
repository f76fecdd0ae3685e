"""GPUs, and the process groups that ranks talk through."""

import shutil
import socket
from collections.abc import Iterator

from pretrain.doctor.finding import GIB, REINSTALL, Finding, Wanted
from pretrain.doctor.software import installed_version


def devices(wanted: Wanted) -> Iterator[Finding]:
    import torch

    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch for CPU only"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            what = f"{facts.name}, {facts.total_memory / GIB:.0f} GiB, compute capability {facts.major}.{facts.minor}"
            yield Finding(f"cuda:{index}", "ok", what)
    elif shutil.which("nvidia-smi"):
        fix = "compare the CUDA version that nvidia-smi shows with the build: a newer driver, or the torch wheel for this one"
        yield Finding("devices", "problem", f"nvidia-smi is here, but {build} sees no GPU", fix)
    else:
        yield Finding("devices", "warning", f"no GPU ({build}): training runs on the CPU, good for small trials only")
    cuda = (torch.version.cuda or "").split(".")[0]
    for name in ("cucim-cu12", "cucim-cu13"):
        if cuda and installed_version(name) and not name.endswith(cuda):
            yield Finding(
                name,
                "warning",
                f"is for another CUDA than {build}",
                f"pip uninstall {name}; pip install cucim-cu{cuda}",
            )


def communication(wanted: Wanted) -> Iterator[Finding]:
    import torch
    import torch.distributed as dist

    host = socket.gethostname()
    try:
        socket.gethostbyname(host)
    except OSError:
        yield Finding("host name", "warning", "this machine's name has no address; gloo and torchrun look it up",
                      "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and torchrun --local-addr")  # fmt: skip
    backends = [("gloo", torch.device("cpu"), dist.is_gloo_available())]
    if torch.cuda.is_available():
        backends.append(("nccl", torch.device("cuda", 0), dist.is_nccl_available()))
    for name, device, available in backends:
        if not available:
            yield Finding(name, "problem", "this build of torch lacks it", REINSTALL)
            continue
        dist.init_process_group(name, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        try:
            value = torch.ones(1, device=device)
            dist.all_reduce(value)
        finally:
            dist.destroy_process_group()
        version = ".".join(map(str, torch.cuda.nccl.version())) if name == "nccl" else "in torch"  # type: ignore[no-untyped-call]
        yield Finding(name, "ok", f"{version}, a process group of one opens and reduces")
