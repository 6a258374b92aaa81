"""Which methods there are: names to classes, loaded when first asked for."""

from __future__ import annotations

from vlmcompress.defaults import AUTO
from vlmcompress.methods.contracts.method import Method
from vlmcompress.registry import Registry

COMPOSITIONS = {
    "aim": "aim-merge+aim-prune",
    "todre": "todre-select+todre-exit",
    "flashvid": "flashvid-merge+flashvid-prune",
    "vscan": "vscan-merge+vscan-prune",
}
"""Papers of several stages: their name stands for the methods that they are made of."""

METHODS: Registry[Method] = Registry(
    "method",
    "vlmcompress.methods.contracts.method:Method",
    group="vlmcompress.methods",
    reserved=(*COMPOSITIONS, AUTO),
)

for _name, _entry in {
    "full": "baselines:Full",
    "text-only": "baselines:TextOnly",
    "random": "random:Random",
    "stride": "stride:Stride",
    "pool": "pool:Pool",
    "downsample": "downsample:Downsample",
    "pixelprune": "pixelprune:PixelPrune",
    "tome": "tome:ToMe",
    "pitome": "pitome:PiToMe",
    "mctf": "mctf:MCTF",
    "unit-drop": "unit_drop:UnitDrop",
    "divprune": "divprune:DivPrune",
    "hiprune": "hiprune:HiPrune",
    "hiprune-pp": "hiprune_pp:HiPrunePP",
    "todre-select": "todre_select:TodreSelect",
    "zoo-prune": "zoo_prune:ZooPrune",
    "embedlens": "embedlens:EmbedLens",
    "token-correlation": "token_correlation:TokenCorrelation",
    "vispruner": "vispruner:VisPruner",
    "prunesid": "prunesid:PruneSID",
    "holov": "holov:HoloV",
    "cdpruner": "cdpruner:CDPruner",
    "scope": "scope:Scope",
    "mmtok": "mmtok:MMTok",
    "hawk": "hawk:Hawk",
    "evs": "evs:EVS",
    "vidcom2": "vidcom2:VidCom2",
    "v-cast": "v_cast:VCast",
    "fastvid": "fastvid:FastVID",
    "flashvid-merge": "flashvid_merge:FlashVIDMerge",
    "visionzip": "visionzip:VisionZip",
    "vscan-merge": "vscan_merge:VScanMerge",
    "aim-merge": "aim_merge:AimMerge",
    "expedit": "expedit:Expedit",
    "restore": "restore:Restore",
    "ppllava": "ppllava:PPLLaVA",
    "pllava": "pllava:PLLaVA",
    "m3": "m3:M3",
    "chunk": "chunk:Chunk",
    "fastv": "fastv:FastV",
    "priortr": "priortr:PriorTR",
    "vscan-prune": "vscan_prune:VScanPrune",
    "flashvid-prune": "flashvid_prune:FlashVIDPrune",
    "pyramiddrop": "pyramiddrop:PyramidDrop",
    "adaptinfer": "adaptinfer:AdaptInfer",
    "feather": "feather:Feather",
    "psigmoid": "psigmoid:PSigmoid",
    "sparsevlm": "sparsevlm:SparseVLM",
    "clse": "clse:CLSE",
    "dart": "dart:DART",
    "aim-prune": "aim_prune:AimPrune",
    "corematching": "corematching:CoreMatching",
    "var": "var:VAR",
    "todre-exit": "todre_exit:TodreExit",
    "inject": "inject:Inject",
}.items():
    METHODS.register(_name, f"vlmcompress.methods.{_entry}")
