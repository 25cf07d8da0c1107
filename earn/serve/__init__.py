"""Answers for many: a bundle behind HTTP (`earn.serve.app`), and all users of a table at once (`earn.serve.batch`)."""
