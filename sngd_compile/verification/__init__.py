"""The laws of the library, checked on a user's own network and batch."""
