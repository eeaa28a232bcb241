"""Object stores by URL (s3, gs, az, http), all through obstore: credentials, retries, and errors in words.

`settings` finds address and credentials as users give them today. `objects` reads and writes objects. `zarr_store` is
the view that Zarr takes of a store. Other URLs, such as ``memory://``, are left to fsspec.
"""
