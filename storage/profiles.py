"""Access keys where users of S3 keep them: the AWS_ variables, and the profiles in ~/.aws.

Read here and not by an AWS library: it would also ask the metadata service of a cloud, other programs and single
sign-on, all of which give keys that expire within hours, and it keeps secrets in objects that show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from configparser import Error, RawConfigParser
from dataclasses import dataclass
from pathlib import Path

from storage.credentials import Credentials, Secret
from storage.errors import BadCredentials

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found. `credentials` is None where there is no access key; region and endpoint are empty when they are
    nowhere given."""

    credentials: Credentials | None = None
    region: str = ""
    endpoint_url: str = ""


def profile_from(environment: Mapping[str, str], name: str | None = None) -> Profile:
    """What AWS's own tools would take: the profile `name` if it is given, else the AWS_ variables, else the profile
    that AWS_PROFILE names or the one called default; region and endpoint from variables first.

    Raises `BadCredentials` when a profile that is asked for is not there, for half a key, for one that expires, as a
    node runs for weeks, and for a file with a key that other users may read.
    """
    asked = name or environment.get("AWS_PROFILE")
    found = _from_files(environment, asked or "default")
    if asked and not found:
        raise BadCredentials(f"there is no AWS profile {asked}: correct the name, or add it to ~/.aws/credentials")
    key_id, secret, token = (environment.get(variable, "") for variable in _KEYS)
    if name or not (key_id or secret):
        key_id, secret, token = (found.get(variable.lower(), "") for variable in _KEYS)
        where, remedy = f"the AWS profile {asked or 'default'}", "give it a long-lived access key"
    else:
        where, remedy = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "set both, to a long-lived access key"
    if token:
        raise BadCredentials(f"the access key in {where} is temporary (it has a session token): {remedy}")
    if bool(key_id) != bool(secret):
        raise BadCredentials(f"there is half an access key in {where}: {remedy}")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or found.get("region", "")
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    credentials = Credentials(key_id, Secret(secret)) if key_id else None
    return Profile(credentials, region, endpoint or found.get("endpoint_url", ""))


def require_private(path: Path, what: str) -> None:
    """Raise `BadCredentials` when other users of this machine may read `path`, which holds `what`."""
    if path.stat().st_mode & _OTHERS:
        raise BadCredentials(f"{path} holds {what} and other users may read it: chmod 600 {path}")


def _from_files(environment: Mapping[str, str], name: str) -> dict[str, str]:
    home = Path(environment.get("HOME", "/"))
    config = Path(environment.get("AWS_CONFIG_FILE") or home / ".aws/config")
    credentials = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials")
    section = name if name == "default" else f"profile {name}"
    return _section(config, section) | _section(credentials, name)  # what both give, the second one decides


def _section(path: Path, name: str) -> dict[str, str]:
    parser = RawConfigParser(strict=False, default_section="")
    try:
        parser.read_string(path.read_text())
        if any("aws_secret_access_key" in parser[section] for section in parser.sections()):
            require_private(path, "an access key")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise BadCredentials(f"{path} cannot be read: make it a text file that this user may read") from None
    except Error:  # which would show the line, and the secret in it
        raise BadCredentials(f"{path} is not a file of AWS profiles: [name], then lines name = value") from None
    return dict(parser[name]) if parser.has_section(name) else {}
