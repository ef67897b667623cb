"""What a storage service says of an object's content, and what of that proves anything.

A service's checksum shows what it received, not what lies at rest. Pure: from what fsspec's
``info`` or ``find`` gives to a digest.

Sources: an ETag is the MD5 of an object that was uploaded in one part and is encrypted with
SSE-S3 or not at all (Amazon S3 API, ``Object``); ``md5Hash`` of Cloud Storage is base64 of the
MD5, and composite objects have none (JSON API, ``Objects``); ``Content-MD5`` of Azure is what
the client stated (Blob service, ``Get Blob Properties``).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from dvc_integrity.digest import DIGEST_BYTES, Algorithm, Digest

__all__ = ["attested", "is_plain_etag"]

_ETAG = re.compile(r'"?([0-9a-f]{32})"?')
_ENCRYPTIONS_WITH_MD5 = (None, "", "AES256")


def attested(about: Mapping[str, Any]) -> Digest | None:
    """Return the MD5 that a service states for an object, or None where it states none.

    An ETag of 32 digits counts here, though it is no MD5 with SSE-KMS, which a listing does not
    tell: one that is equal to what is expected proves it, one that differs proves nothing before
    ``is_plain_etag`` says so.
    """
    etag = _ETAG.fullmatch(str(about.get("ETag", "")))
    if etag:
        return Digest.from_hex(Algorithm.MD5, etag[1])
    stated = about.get("md5Hash")
    if stated is None:
        settings = about.get("content_settings")
        stated = settings.get("content_md5") if isinstance(settings, Mapping) else None
    return _decoded(stated)


def is_plain_etag(about: Mapping[str, Any]) -> bool:
    """Return whether an object's own description says that its ETag is an MD5.

    Parameters
    ----------
    about
        What a request for this one object gave (S3's ``HeadObject``), not a listing.
    """
    encryption = about.get("ServerSideEncryption")
    return encryption in _ENCRYPTIONS_WITH_MD5 and not about.get("SSECustomerAlgorithm")


def _decoded(stated: object) -> Digest | None:
    if isinstance(stated, str):
        try:
            stated = base64.b64decode(stated, validate=True)
        except binascii.Error:
            return None
    if isinstance(stated, (bytes, bytearray)) and len(stated) == DIGEST_BYTES:
        return Digest(Algorithm.MD5, bytes(stated))
    return None
