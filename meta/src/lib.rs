//! Metadata: tables, nodes, partitions.
