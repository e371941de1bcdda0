"""What the link refuses at start: each message names the thing, its value and the remedy."""


class LinkError(ValueError):
    """The link cannot be started or used as it was asked to."""


class SettingsError(LinkError):
    """A settings file, an address or a link profile that makes no sense."""


class CertificateError(LinkError):
    """A certificate or key that is missing, wrong, expired, or somebody else's."""
