"""FRL-DGT: micro-expression recognition from an onset-apex pair of frames.

What most people need, by one import: `from frl_dgt_nb import samples, FRLDGT, run_loso`. A name is loaded when it is
first used, so that importing the package costs next to nothing. All else lies in the sub-packages.
"""

from importlib import import_module

_HOMES = {
    "data.archives": ["read_database"],
    "data.databases": ["read_folder"],
    "data.check": ["check_database"],
    "data.spotting": ["spot_file"],
    "data.preparation": ["prepare", "samples"],
    "data.store": ["FaceStore"],
    "model.warp": ["from_pixels", "to_pixels", "warp"],
    "model.dgm": ["DisplacementModule", "displacement_loss"],
    "model.flow": ["optical_flow"],
    "model.regions": ["au_boxes", "crop_boxes"],
    "model.fusion": ["LocalFusion", "GlobalFusion"],
    "model.attention": ["FusionAfter", "FusionBefore"],
    "model.config": ["ModelConfig", "PRESETS"],
    "model.frldgt": ["FRLDGT", "load_model", "save_weights"],
    "training.settings": ["TRAIN_PRESETS", "TrainConfig"],
    "training.metrics": ["confusion", "uar", "uf1"],
    "training.predict": ["predict"],
    "training.loso": ["run_loso"],
    "training.protocol": ["compare_runs"],
    "pictures.plots": ["plot_boxes", "plot_displacement"],
    "pictures.report": ["write_report"],
    "widgets.inspector": ["DisplacementInspector"],
    "widgets.losslab": ["ModuleLab"],
    "widgets.fusionview": ["FusionView"],
    "widgets.board": ["LosoBoard"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str):
    if name == "__version__":
        from importlib.metadata import version

        value = version("frl-dgt-nb")
    elif name in _HOME_OF:
        value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    globals()[name] = value  # the next time without a detour
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
