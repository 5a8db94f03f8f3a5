"""Fetches a token from the broker with Authlib, which is told nothing but the issuer.

usage: token_with_authlib.py ISSUER CLIENT_ID CLIENT_SECRET CONNECTION

The token endpoint is read from the metadata document (RFC 8414), and the connection is named by
`resource` (RFC 8707). Prints the token as one JSON object; ends with a traceback and a non-zero
code when the library refuses an answer.
"""

import json
import os
import sys

import requests
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata, get_well_known_url


# Authlib accepts https only. The broker is on loopback here, with no proxy in front of it.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"


def discover(issuer):
    """The server's metadata; a client must refuse another issuer's (RFC 8414 section 3.3)."""
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(get_well_known_url(issuer, external=True), timeout=10)
    response.raise_for_status()
    metadata = AuthorizationServerMetadata(response.json())
    metadata.validate_issuer()
    metadata.validate_token_endpoint()
    if metadata["issuer"] != issuer:
        raise ValueError(f"asked {issuer}, answered by {metadata['issuer']}")
    return metadata


def main(issuer, client_id, client_secret, connection):
    metadata = discover(issuer)
    with OAuth2Session(client_id, client_secret) as session:
        # No proxy of the environment stands between this and loopback.
        session.trust_env = False
        # HTTP Basic is what the library does on its own.
        token = session.fetch_token(
            metadata["token_endpoint"],
            grant_type="client_credentials",
            resource=f"{issuer}/v1/connections/{connection}",
        )
    print(json.dumps(token))


if __name__ == "__main__":
    main(*sys.argv[1:])
