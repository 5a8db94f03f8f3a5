"""Fetches a token from the broker with requests-oauthlib, set up as for any other server.

usage: token_with_requests_oauthlib.py TOKEN_URL CLIENT_ID CLIENT_SECRET CONNECTION

The connection is named by `scope`. Prints the token as one JSON object; ends with a traceback
and a non-zero code when the library refuses the answer.
"""

import json
import os
import sys

from oauthlib.oauth2 import BackendApplicationClient
from requests_oauthlib import OAuth2Session

# oauthlib accepts https only. The broker is on loopback here, with no proxy in front of it.
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"


def main(token_url, client_id, client_secret, connection):
    client = BackendApplicationClient(client_id=client_id, scope=[connection])
    with OAuth2Session(client=client) as session:
        # No proxy of the environment stands between this and loopback.
        session.trust_env = False
        # HTTP Basic is what the library does on its own.
        token = session.fetch_token(token_url, client_id=client_id, client_secret=client_secret)
    print(json.dumps(token))


if __name__ == "__main__":
    main(*sys.argv[1:])
