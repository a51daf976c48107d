"""`python make_bucket.py NAME`: make a bucket in a store that starts beside us, if it is missing.

Alone in its image (mlflow-compose.yaml), so it knows nothing of the project.
"""

from __future__ import annotations

import os
import sys
import time

ATTEMPTS = 30


def make_bucket(name: str) -> None:
    """Make it, waiting for the store to answer.

    Raises:
        SystemExit: if it does not within half a minute.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    place, said = os.environ["MLFLOW_S3_ENDPOINT_URL"], None
    store = boto3.client("s3", endpoint_url=place)
    for _ in range(ATTEMPTS):
        try:
            if name not in {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}:
                store.create_bucket(Bucket=name)
            return
        except (BotoCoreError, ClientError) as error:
            said = error
            time.sleep(1)
    sys.exit(f"the store at {place} makes no bucket {name}: {said}")


if __name__ == "__main__":
    make_bucket(sys.argv[1])
