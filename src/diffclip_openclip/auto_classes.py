"""Making models known to transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel


def register_auto_classes(config_class: type[PretrainedConfig], model_class: type[PreTrainedModel]) -> None:
    """Register with ``AutoConfig`` and ``AutoModel``; repeating it changes nothing.

    Raises:
        ValueError: another package has registered a different class for the config's ``model_type``.
    """
    model_type = config_class.model_type
    try:
        known = type(AutoConfig.for_model(model_type))
    except ValueError:  # transformers' answer for an unknown model type
        known = config_class
    if known.__module__ != config_class.__module__:
        raise ValueError(
            f"transformers already has another model type {model_type!r}, from {known.__module__}; "
            "uninstall or rename that one to use diffclip_openclip"
        )
    AutoConfig.register(model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
