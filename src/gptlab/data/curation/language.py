"""Filter: documents in other languages, by the py3langid library, whose model is in its package."""

from importlib import metadata
from typing import Any

from gptlab.data.curation.config import LanguageConfig
from gptlab.data.curation.filter import Candidate, DocumentFilter, Removal
from gptlab.errors import UserError, did_you_mean

_PACKAGE = "py3langid"


def version() -> str:
    """The library that decides, with its version; UserError where it is not installed."""
    try:
        return f"{_PACKAGE} {metadata.version(_PACKAGE)}"
    except metadata.PackageNotFoundError:
        raise UserError(
            f"the filter language needs the {_PACKAGE} library; type: pip install 'gptlab[language]'"
        ) from None


class Language(DocumentFilter):
    """Keeps documents whose most likely language is one of a list, and is likely enough."""

    rules = ("languages", "min_confidence")

    def __init__(self, config: LanguageConfig) -> None:
        version()
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._config = config
        self._identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        for language in config.languages:
            if language not in self._identifier.labels:
                raise UserError(
                    f"data.filters.language.languages: {language} is no language that {_PACKAGE} knows"
                    f"{did_you_mean(language, self._identifier.labels)}; use ISO 639 codes, such as en, de or zh"
                )

    def check(self, candidate: Candidate) -> Removal | None:
        config = self._config
        language, confidence = self._identifier.classify(candidate.text[: config.max_characters])
        if language not in config.languages:
            return Removal("languages", f"language {language} ({confidence:.2f})")
        if confidence < config.min_confidence:
            return Removal(
                "min_confidence", f"language {language} with {confidence:.2f}, less than {config.min_confidence}"
            )
        return None
