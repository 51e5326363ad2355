//! Responses of the admin API as text for people.

use std::collections::BTreeMap;

use meta::admin::{
    ClusterStatus, CompactionStatus, NodeStatus, PartitionStatus, ServerStatus, TableStatus,
};

/// Rows of cells as aligned columns; numbers are right-aligned.
pub(super) fn columns(heads: &[&str], rows: &[Vec<String>]) -> String {
    let is_number =
        |cell: &str| cell.split(' ').next().is_some_and(|word| word.parse::<f64>().is_ok());
    let numeric =
        |column: usize| !rows.is_empty() && rows.iter().all(|row| is_number(&row[column]));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([heads[column].len()])
            .max()
            .unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let cells = cells.into_iter().enumerate().map(|(column, cell)| match numeric(column) {
            true => format!("{cell:>width$}", width = width(column)),
            false => format!("{cell:<width$}", width = width(column)),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [line(heads.to_vec())].into_iter().chain(body).collect()
}

/// A number of bytes in a unit for people.
pub(super) fn bytes(count: u64) -> String {
    let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, bits)| count >> bits != 0);
    match unit {
        Some((name, bits)) => format!("{:.1} {name}", count as f64 / (1u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

pub(super) fn tables(list: &[TableStatus]) -> String {
    if list.is_empty() {
        return "no tables yet: db0 to db15 are created by their first write, others by `bridle \
                admin create`\n"
            .to_owned();
    }
    let row = |table: &TableStatus| {
        let envs = table
            .envs
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ");
        let status = if table.figures.faults.is_empty() {
            table.status.clone()
        } else {
            format!("{}, faulty", table.status)
        };
        let figures = &table.figures;
        vec![
            table.id.to_string(),
            table.number.to_string(),
            table.name.clone(),
            status,
            table.partitions.to_string(),
            table.replicas.to_string(),
            figures.rows.to_string(),
            figures.expiring.to_string(),
            bytes(figures.disk_bytes),
            bytes(figures.memtable_bytes),
            envs,
        ]
    };
    let mut out = columns(
        &[
            "ID",
            "NUMBER",
            "NAME",
            "STATUS",
            "PARTITIONS",
            "REPLICAS",
            "ROWS",
            "EXPIRING",
            "DISK",
            "MEMTABLES",
            "ENVS",
        ],
        &list.iter().map(row).collect::<Vec<_>>(),
    );
    for table in list {
        for (index, fault) in &table.figures.faults {
            out.push_str(&format!("{} partition {index}: {fault}\n", table.name));
        }
    }
    out
}

pub(super) fn envs(all: &BTreeMap<String, String>) -> String {
    match all.is_empty() {
        true => "none set\n".to_owned(),
        false => columns(
            &["ENV", "VALUE"],
            &all.iter().map(|(key, value)| vec![key.clone(), value.clone()]).collect::<Vec<_>>(),
        ),
    }
}

pub(super) fn node(status: &NodeStatus) -> String {
    let ready = if status.ready { "ready" } else { "not ready" };
    let (days, hours, minutes, seconds) = (
        status.uptime_seconds / 86_400,
        status.uptime_seconds / 3600 % 24,
        status.uptime_seconds / 60 % 60,
        status.uptime_seconds % 60,
    );
    let lines = [
        ("status", format!("{ready}, up {days}d {hours:02}:{minutes:02}:{seconds:02}")),
        ("version", status.version.clone()),
        (
            "cluster",
            format!("{} ({}), node {}", status.cluster, status.cluster_id, id(status.node_id)),
        ),
        ("serves", status.addresses.join(", ")),
        ("durability", status.durability.clone()),
        ("clients", status.clients.to_string()),
        ("tables", format!("{} with {} partitions", status.tables, status.partitions)),
        (
            "disk",
            format!("{} of rows, {} of log", bytes(status.disk_bytes), bytes(status.log_bytes)),
        ),
        ("memory", bytes(status.memory_bytes)),
    ];
    let mut out: String =
        lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    for fault in &status.faults {
        out.push_str(&format!("fault       {fault}\n"));
    }
    out
}

/// A process's id: hexadecimal, as elsewhere; that of a standalone server is a plain 1.
fn id(number: u64) -> String {
    match number < cluster::META_IDS_END {
        true => number.to_string(),
        false => format!("{number:016x}"),
    }
}

/// The status of the cluster, printed below that of the process.
pub(super) fn cluster(status: &ClusterStatus) -> String {
    let metas = status.metas.iter().map(|meta| {
        if meta.leads { format!("{} (leads)", meta.address) } else { meta.address.clone() }
    });
    let lines = [
        ("metas", metas.collect::<Vec<_>>().join(", ")),
        ("nodes", format!("{} of {} are up", status.servers_up, status.servers)),
        (
            "partitions",
            format!(
                "{}: {} led, {} with all replicas",
                status.partitions, status.partitions_led, status.partitions_whole
            ),
        ),
    ];
    let mut out: String =
        lines.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect();
    for fault in &status.faults {
        out.push_str(&format!("fault       {fault}\n"));
    }
    out
}

pub(super) fn nodes(list: &[ServerStatus]) -> String {
    let row = |node: &ServerStatus| {
        let state = match node.silent_ms {
            Some(silent) if node.state != "up" => format!("{} {} s", node.state, silent / 1000),
            _ => node.state.clone(),
        };
        // Unknown is not zero: a node in its first second has not reported yet.
        let known = |figure: Option<u64>, show: fn(u64) -> String| {
            figure.map_or_else(|| "-".to_owned(), show)
        };
        let free =
            node.disk_free_bytes.filter(|_| node.disk_total_bytes.is_some_and(|total| total > 0));
        vec![
            node.id.clone(),
            node.address.clone(),
            node.zone.clone(),
            node.roles.join(","),
            state,
            node.replicas.to_string(),
            node.leads.to_string(),
            known(node.connections, |count| count.to_string()),
            known(node.disk_bytes, bytes),
            known(free, bytes),
            known(node.memory_bytes, bytes),
            node.clients.join(" "),
        ]
    };
    let heads = [
        "ID", "ADDRESS", "ZONE", "ROLES", "STATE", "REPLICAS", "LEADS", "CLIENTS", "DISK", "FREE",
        "MEMORY", "REDIS",
    ];
    let mut out = columns(&heads, &list.iter().map(row).collect::<Vec<_>>());
    for node in list {
        for fault in &node.faults {
            out.push_str(&format!("{}: {fault}\n", node.address));
        }
    }
    out
}

pub(super) fn partitions(list: &[PartitionStatus]) -> String {
    let row = |partition: &PartitionStatus| {
        let leads = partition.members.iter().find(|member| member.leads);
        let follower =
            |member: &meta::admin::MemberStatus| match (member.state.as_str(), member.lag) {
                ("running", Some(0)) => member.address.clone(),
                ("running", Some(lag)) => format!("{} ({lag} behind)", member.address),
                (state, _) => format!("{} ({state})", member.address),
            };
        let followers = partition
            .members
            .iter()
            .filter(|member| !member.leads)
            .map(follower)
            .collect::<Vec<_>>();
        vec![
            partition.index.to_string(),
            format!("{}-{}", partition.slots[0], partition.slots[1]),
            leads.map_or_else(|| "none".to_owned(), |member| member.address.clone()),
            partition.term.to_string(),
            leads.map_or(0, |member| member.rows).to_string(),
            bytes(leads.map_or(0, |member| member.disk_bytes)),
            followers.join(", "),
        ]
    };
    let heads = ["PARTITION", "SLOTS", "LEADER", "TERM", "ROWS", "DISK", "FOLLOWERS"];
    let mut out = columns(&heads, &list.iter().map(row).collect::<Vec<_>>());
    for partition in list {
        for member in partition.members.iter().filter(|member| member.fault.is_some()) {
            out.push_str(&format!(
                "partition {} on {}: {}\n",
                partition.index,
                member.address,
                member.fault.as_deref().unwrap_or_default()
            ));
        }
    }
    out
}

pub(super) fn compaction(progress: &CompactionStatus) -> String {
    let seconds = progress.elapsed_ms as f64 / 1000.0;
    let parts = format!("{} of {} partitions", progress.partitions_done, progress.partitions);
    let sizes =
        format!("{} before, {} now", bytes(progress.disk_bytes_before), bytes(progress.disk_bytes));
    match progress.status.as_str() {
        "none" => "no compaction was asked for since the server started\n".to_owned(),
        "running" => format!("running for {seconds:.1} s: {parts} done; {sizes}\n"),
        "done" => format!("done in {seconds:.1} s: {parts}; {sizes}\n"),
        other => format!(
            "{other} after {seconds:.1} s: {parts} done: {}\n",
            progress.error.as_deref().unwrap_or("no reason given")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["1".into(), "db0".into()], vec!["10".into(), "a-long-name".into()]];
        assert_eq!(columns(&["ID", "NAME"], &rows), "ID  NAME\n 1  db0\n10  a-long-name\n");
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }

    #[test]
    fn unreported_figures_are_shown_as_dashes() {
        let mut node = ServerStatus {
            id: "26a4004934bacc69".into(),
            address: "a:1".into(),
            http: "a:2".into(),
            clients: vec!["a:3".into()],
            zone: "z".into(),
            roles: vec!["proxy".into()],
            state: "up".into(),
            silent_ms: None,
            since_ms: 1,
            version: "0.1.0".into(),
            uptime_seconds: None,
            replicas: 2,
            leads: 1,
            connections: None,
            disk_bytes: None,
            log_bytes: None,
            disk_free_bytes: None,
            disk_total_bytes: None,
            memory_bytes: None,
            durability: None,
            faults: Vec::new(),
        };
        let cells = |node: &ServerStatus| {
            nodes(std::slice::from_ref(node))
                .lines()
                .nth(1)
                .expect("a row")
                .split("  ")
                .map(|cell| cell.trim().to_owned())
                .filter(|cell| !cell.is_empty())
                .collect::<Vec<_>>()
        };
        assert_eq!(cells(&node)[5..], ["2", "1", "-", "-", "-", "-", "a:3"]);
        (node.connections, node.disk_bytes, node.memory_bytes) = (Some(0), Some(0), Some(1 << 20));
        (node.disk_free_bytes, node.disk_total_bytes) = (Some(0), Some(1 << 30));
        assert_eq!(cells(&node)[5..], ["2", "1", "0", "0 B", "0 B", "1.0 MiB", "a:3"]);
    }

    #[test]
    fn status_is_readable() {
        let status = NodeStatus {
            version: "0.1.0".into(),
            cluster: "bridle".into(),
            cluster_id: "0123456789abcdef".into(),
            node_id: 1,
            uptime_seconds: 90_061,
            ready: true,
            durability: "always".into(),
            addresses: vec!["127.0.0.1:6379".into()],
            clients: 3,
            tables: 1,
            partitions: 1,
            disk_bytes: 0,
            log_bytes: 1 << 20,
            memory_bytes: 50 << 20,
            faults: vec!["db0 partition 0: storage fault: x".into()],
        };
        let shown = node(&status);
        assert!(shown.starts_with("status      ready, up 1d 01:01:01\n"), "{shown}");
        assert!(
            shown.contains("disk        0 B of rows, 1.0 MiB of log\n")
                && shown.ends_with("fault       db0 partition 0: storage fault: x\n"),
            "{shown}"
        );
    }
}
