"""Answers for many: all users of a table at once (`earn.serve.batch`)."""
