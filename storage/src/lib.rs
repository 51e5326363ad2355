//! Replicas: openraft group, executor, apply.
