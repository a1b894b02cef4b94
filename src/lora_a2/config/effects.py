"""Options that would have no effect beside others: refused rather than passed over."""

from __future__ import annotations

from lora_a2.errors import ConfigError
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import Options, marks_of


def check_effects(options: Options) -> None:
    """Refuses an option that differs from its default if it has no effect, as its declaration tells.

    One that is at its default passes: the configuration of a run that is read again lists all of them.

    Raises:
        ConfigError: the message names the option and what it needs.
    """
    for name, field in type(options).model_fields.items():
        effect = marks_of(field).effect
        if effect is not None and getattr(options, name) != field.get_default() and not effect.acts(options):
            raise ConfigError(f"{kebab(name)}: it has no effect here; it needs {effect.needs}. Leave it out otherwise.")
