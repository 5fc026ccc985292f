"""Access keys from the AWS_ variables and profiles: as AWS's own tools take them, or a sentence without secrets."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from storage.credentials import Credentials, Secret
from storage.errors import BadCredentials
from storage.profiles import Profile, profile_from

VARIABLES = {"AWS_ACCESS_KEY_ID": "ENVID", "AWS_SECRET_ACCESS_KEY": "env-secret"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = DEFID\naws_secret_access_key = default/secret+%(x)s=\n"
        "[night]\naws_access_key_id=NIGHTID\naws_secret_access_key=night-secret\n"
        "[role]\naws_access_key_id=ROLEID\naws_secret_access_key=role-secret\naws_session_token=role-token\n"
    )
    (tmp_path / ".aws/credentials").chmod(0o600)
    (tmp_path / ".aws/config").write_text(
        "[default]\nregion = eu-north-1\n[profile night]\nregion = auto\nendpoint_url = https://night.example\n"
        "s3 =\n  addressing_style = path\n[profile bare]\nsso_session = x\n"
    )
    return tmp_path


def test_variables_come_before_profiles_unless_a_profile_is_asked_for(home: Path) -> None:
    environment = {"HOME": str(home), **VARIABLES}
    of_variables = Profile(Credentials("ENVID", Secret("env-secret")), "eu-north-1", "")
    of_night = Profile(Credentials("NIGHTID", Secret("night-secret")), "auto", "https://night.example")
    assert profile_from(environment) == of_variables
    assert profile_from(environment, "night") == of_night
    assert profile_from({"HOME": str(home), "AWS_PROFILE": "night"}) == of_night
    assert profile_from({"HOME": str(home)}).credentials == Credentials("DEFID", Secret("default/secret+%(x)s="))


def test_region_and_endpoint_of_the_variables_come_first(home: Path) -> None:
    environment = {"HOME": str(home), "AWS_REGION": "r-1", "AWS_ENDPOINT_URL": "https://one.example"}
    found = profile_from(environment, "night")
    assert (found.region, found.endpoint_url) == ("r-1", "https://one.example")
    found = profile_from({**environment, "AWS_ENDPOINT_URL_S3": "https://two.example"}, "night")
    assert found.endpoint_url == "https://two.example"


def test_the_files_may_lie_elsewhere(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.write_text("[default]\naws_access_key_id=E\naws_secret_access_key=elsewhere\nregion=there\n")
    elsewhere.chmod(0o600)
    environment = {"HOME": str(home), "AWS_SHARED_CREDENTIALS_FILE": str(elsewhere)}
    assert profile_from(environment) == Profile(Credentials("E", Secret("elsewhere")), "there", "")


@pytest.mark.parametrize(
    ("environment", "profile", "said"),
    [
        ({}, "nobody", "no AWS profile nobody"),
        ({"AWS_PROFILE": "nobody"}, None, "no AWS profile nobody"),
        ({}, "role", "temporary"),
        ({"AWS_ACCESS_KEY_ID": "ENVID"}, None, "set both"),
        ({**VARIABLES, "AWS_SESSION_TOKEN": "env-token"}, None, "temporary"),
        ({"AWS_CONFIG_FILE": "/proc/self/mem"}, None, "cannot be read"),
    ],
)
def test_what_is_no_lasting_key_is_refused_with_what_to_do(
    home: Path, environment: dict[str, str], profile: str | None, said: str
) -> None:
    with pytest.raises(BadCredentials, match=said):
        profile_from({"HOME": str(home), **environment}, profile)


def test_where_there_is_no_key_there_may_still_be_a_region(home: Path, tmp_path: Path) -> None:
    assert profile_from({"HOME": str(home)}, "bare") == Profile()
    assert profile_from({"HOME": str(tmp_path / "nobody"), "AWS_REGION": "r-1"}) == Profile(None, "r-1", "")


def test_a_file_of_keys_that_others_may_read_is_refused(home: Path) -> None:
    (home / ".aws/credentials").chmod(0o640)
    with pytest.raises(BadCredentials, match="chmod 600"):
        profile_from({"HOME": str(home)})


def test_no_secret_of_a_broken_file_is_shown(home: Path) -> None:
    (home / ".aws/credentials").write_text("[default]\naws_access_key_id = D\nnight-secret\n")
    with pytest.raises(BadCredentials, match="not a file of AWS profiles") as caught:
        profile_from({"HOME": str(home)})
    assert "night-secret" not in "".join(traceback.format_exception(caught.value))
