//! Decisions of commands on the metadata, and the state that they leave.

use cluster::meta_protocol::Roles;

use super::*;

fn server(id: u64) -> Server {
    let roles = Roles { meta: false, storage: true, proxy: true };
    Server {
        id: ServerId(id),
        address: format!("host{id}:1"),
        http: String::new(),
        clients: Vec::new(),
        zone: String::new(),
        roles,
        durability: None,
    }
}
fn live() -> Vec<ServerId> {
    vec![ServerId(300)]
}
fn create(name: &str) -> MetaCommand {
    MetaCommand::Create {
        name: name.into(),
        partitions: 1,
        replicas: 1,
        envs: BTreeMap::new(),
        live: live(),
        unhealthy: Vec::new(),
    }
}
fn destroyed(id: u32) -> MetaCommand {
    MetaCommand::MarkDestroyed { id: TableId(id), server: ServerId(300) }
}
fn with_servers(ids: &[u64]) -> MetaState {
    let mut state = MetaState::default();
    for id in ids {
        let decided = state.decide(MetaCommand::Register(server(*id)), 1).unwrap();
        state.apply(&decided.changes, 1);
    }
    state
}
fn drop(name: &str) -> MetaCommand {
    MetaCommand::Drop { name: name.into() }
}
fn set(name: &str, key: &str, value: &str) -> MetaCommand {
    MetaCommand::SetEnv { name: name.into(), key: key.into(), value: value.into() }
}
fn delete(name: &str, key: &str) -> MetaCommand {
    MetaCommand::DeleteEnv { name: name.into(), key: key.into() }
}

/// Runs commands at stamps 1000, 2000, ...; refusals are left in the answer.
fn run(commands: Vec<MetaCommand>) -> (MetaState, Vec<Result<Arc<Table>, Refusal>>) {
    let mut state = with_servers(&[300]);
    let outcomes = commands.into_iter().zip(1u64..).map(|(command, step)| {
        let before = state.clone();
        let decided = state.decide(command, step * 1000);
        assert_eq!(state, before, "deciding changes nothing");
        decided.map(|decided| {
            state.apply(&decided.changes, step * 1000);
            decided.table.unwrap()
        })
    });
    let outcomes = outcomes.collect();
    (state, outcomes)
}

#[test]
fn ids_are_never_reused() {
    let (state, outcomes) = run(vec![
        create("a"),
        drop("a"),
        create("a"),
        destroyed(1),
        drop("a"),
        destroyed(2),
        create("a"),
    ]);
    let ids: Vec<u32> = outcomes.into_iter().map(|outcome| outcome.unwrap().id.0).collect();
    assert_eq!(ids, [1, 1, 2, 1, 2, 2, 3]);
    assert_eq!(state.tables.keys().map(|id| id.0).collect::<Vec<_>>(), [3]);
}

/// And `db7` has 7, whatever becomes of it.
#[test]
fn a_table_with_a_name_has_a_number_that_none_had_before() {
    let commands = [
        create("a"),
        create("db3"),
        drop("a"),
        create("a"),
        create("db40"),
        create("b"),
        drop("db3"),
        create("db3"),
    ];
    let (state, outcomes) = run(commands.to_vec());
    let numbers: Vec<u32> = outcomes.into_iter().map(|outcome| outcome.unwrap().number).collect();
    assert_eq!((numbers, state.next_number), (vec![16, 3, 16, 17, 40, 41, 3, 3], 42));
}

#[test]
fn refusals() {
    let cases: Vec<(Vec<MetaCommand>, Refusal)> = vec![
        (vec![create("a"), create("a")], Refusal::Exists("a".into())),
        (vec![create("a"), create("db16")], Refusal::Reserved("db16".into())),
        (vec![create("db20"), drop("db20"), create("db20")], Refusal::Reserved("db20".into())),
        (vec![create("db10000")], Refusal::Reserved("db10000".into())),
        (vec![create("")], Refusal::BadName),
        (vec![create("16")], Refusal::BadName),
        (vec![create("a b")], Refusal::BadName),
        (vec![create("a/b")], Refusal::BadName),
        (vec![create("ä")], Refusal::BadName),
        (vec![create(&"x".repeat(65))], Refusal::BadName),
        (
            vec![MetaCommand::Create {
                name: "a".into(),
                partitions: 0,
                replicas: 1,
                envs: BTreeMap::new(),
                live: live(),
                unhealthy: Vec::new(),
            }],
            Refusal::BadPartitions,
        ),
        (
            vec![MetaCommand::Create {
                name: "a".into(),
                partitions: 1025,
                replicas: 1,
                envs: BTreeMap::new(),
                live: live(),
                unhealthy: Vec::new(),
            }],
            Refusal::BadPartitions,
        ),
        (vec![drop("a")], Refusal::NoTable("a".into())),
        (vec![create("a"), drop("a"), drop("a")], Refusal::NoTable("a".into())),
        (vec![create("a"), drop("a"), set("a", "default_ttl", "5")], Refusal::NoTable("a".into())),
        (vec![create("a"), destroyed(1)], Refusal::NotDropping(TableId(1))),
        (vec![destroyed(9)], Refusal::NotDropping(TableId(9))),
        (vec![delete("a", "default_ttl")], Refusal::NoTable("a".into())),
    ];
    for (commands, refusal) in cases {
        let words = format!("{commands:?}");
        let (_, outcomes) = run(commands);
        assert_eq!(outcomes.last().unwrap().as_ref().unwrap_err(), &refusal, "{words}");
    }
    let (_, outcomes) = run(vec![
        create("a"),
        set("a", "no_such", "5"),
        delete("a", "no_such"),
        set("a", "default_ttl", "soon"),
    ]);
    assert!(
        outcomes[1..].iter().all(|outcome| matches!(outcome, Err(Refusal::Env(_)))),
        "{outcomes:?}"
    );
}

#[test]
fn the_longest_name_and_odd_names_are_fine() {
    for name in ["db0", "a", "0x", "user:sessions.v2_x-y", &"x".repeat(64)] {
        assert_eq!(check_name(name), Ok(()), "{name}");
    }
}

#[test]
fn default_ttl_is_dated_when_its_value_changes() {
    let since =
        |commands: Vec<MetaCommand>| run(commands).0.named("a").unwrap().table.default_ttl_since_ms;
    assert_eq!(since(vec![create("a")]), 0);
    assert_eq!(since(vec![create("a"), set("a", "default_ttl", "5")]), 2000);
    assert_eq!(
        since(vec![create("a"), set("a", "default_ttl", "5"), set("a", "default_ttl", "5")]),
        2000
    );
    assert_eq!(
        since(vec![create("a"), set("a", "default_ttl", "5"), set("a", "default_ttl", "6")]),
        3000
    );
    assert_eq!(
        since(vec![create("a"), set("a", "default_ttl", "5"), delete("a", "default_ttl")]),
        3000
    );
    let envs = BTreeMap::from([("default_ttl".to_owned(), "5".to_owned())]);
    assert_eq!(
        since(vec![MetaCommand::Create {
            name: "a".into(),
            partitions: 1,
            replicas: 1,
            envs,
            live: live(),
            unhealthy: Vec::new()
        }]),
        1000
    );
}

#[test]
fn commands_without_effect_change_nothing() {
    let (state, _) = run(vec![create("a"), set("a", "default_ttl", "5")]);
    assert_eq!(state.decide(set("a", "default_ttl", "5"), 9000).unwrap().changes, []);
    let (state, _) = run(vec![create("a")]);
    assert_eq!(state.decide(delete("a", "default_ttl"), 9000).unwrap().changes, []);
}

#[test]
fn there_is_an_end_to_tables() {
    let mut state = with_servers(&[300]);
    for i in 0..TABLES_MAX {
        let decided = state.decide(create(&format!("t{i}")), 1).unwrap();
        state.apply(&decided.changes, 1);
    }
    assert_eq!(state.decide(create("one-more"), 1), Err(Refusal::TooMany));
    let state = MetaState { next_id: u32::MAX, ..with_servers(&[300]) };
    assert_eq!(state.decide(create("a"), 1), Err(Refusal::NoIds));
}

#[test]
fn the_stamp_does_not_run_backwards() {
    let mut state = MetaState { stamp_ms: 5, ..MetaState::default() };
    state.apply(&[], 3);
    assert_eq!(state.stamp_ms, 5);
}

fn three(name: &str, live: &[u64]) -> MetaCommand {
    let live = live.iter().map(|id| ServerId(*id)).collect();
    MetaCommand::Create {
        name: name.into(),
        partitions: 4,
        replicas: 3,
        envs: BTreeMap::new(),
        live,
        unhealthy: Vec::new(),
    }
}

fn step(state: &mut MetaState, command: MetaCommand) -> Result<Decision, Refusal> {
    let stamp_ms = state.stamp_ms + 1;
    let decided = state.decide(command, stamp_ms)?;
    state.apply(&decided.changes, stamp_ms);
    Ok(decided)
}

#[test]
fn a_new_table_is_led_where_disks_are_well() {
    let mut state = with_servers(&[300, 301, 302]);
    let MetaCommand::Create { name, partitions, replicas, envs, live, .. } =
        three("a", &[300, 301, 302])
    else {
        unreachable!()
    };
    let create = MetaCommand::Create {
        name,
        partitions,
        replicas,
        envs,
        live,
        unhealthy: vec![ServerId(301)],
    };
    let table = step(&mut state, create).unwrap().table.unwrap();
    let first: Vec<u64> =
        state.placements_of(table.id).map(|placement| placement.members[0].server.0).collect();
    assert_eq!(first, [300, 302, 300, 302]);
}

#[test]
fn a_table_is_made_in_two_steps() {
    let mut state = with_servers(&[300, 301, 302, 303]);
    let refused = step(&mut state, three("a", &[300, 301])).unwrap_err();
    assert_eq!(refused, Refusal::NotEnoughServers(NotEnoughServers { replicas: 3, live: 2 }));
    // One that was never registered does not count.
    assert!(step(&mut state, three("a", &[300, 301, 999])).is_err());
    let table = step(&mut state, three("a", &[300, 301, 303])).unwrap().table.unwrap();
    assert_eq!((state.tables[&table.id].status, table.replicas), (TablePhase::Creating, 3));
    let placements: Vec<_> = state.placements_of(table.id).cloned().collect();
    assert_eq!(placements.len(), 4);
    let mut raft_ids: Vec<u64> = placements
        .iter()
        .flat_map(|placement| placement.members.iter().map(|member| member.raft_id))
        .collect();
    raft_ids.sort_unstable();
    assert_eq!(raft_ids, (FIRST_RAFT_ID..FIRST_RAFT_ID + 12).collect::<Vec<_>>());
    assert!(
        placements
            .iter()
            .all(|placement| placement.on(ServerId(302)).is_none() && placement.epoch == 1)
    );
    assert_eq!(
        step(&mut state, three("a", &[300, 301, 302])).unwrap_err(),
        Refusal::Exists("a".into())
    );
    step(&mut state, MetaCommand::MarkReady { id: table.id }).unwrap();
    assert_eq!(state.tables[&table.id].status, TablePhase::Ready);
    assert_eq!(
        step(&mut state, MetaCommand::MarkReady { id: table.id }).unwrap_err(),
        Refusal::NotCreating(table.id)
    );
    // Placed beside it, the next goes to where there is less.
    let next = step(&mut state, three("b", &[300, 301, 302, 303])).unwrap().table.unwrap();
    assert!(state.placements_of(next.id).all(|placement| placement.on(ServerId(302)).is_some()));
    assert!(
        state
            .placements_of(next.id)
            .flat_map(|placement| &placement.members)
            .all(|member| member.raft_id >= FIRST_RAFT_ID + 12)
    );
}

#[test]
fn a_drop_ends_when_the_last_server_has_destroyed() {
    let mut state = with_servers(&[300, 301, 302]);
    let id = step(&mut state, three("a", &[300, 301, 302])).unwrap().table.unwrap().id;
    step(&mut state, drop("a")).unwrap();
    assert_eq!(state.tables[&id].remaining, [ServerId(300), ServerId(301), ServerId(302)]);
    let destroyed = |server| MetaCommand::MarkDestroyed { id, server: ServerId(server) };
    step(&mut state, destroyed(301)).unwrap();
    assert_eq!(step(&mut state, destroyed(301)).unwrap_err(), Refusal::NotDropping(id));
    assert_eq!(
        state.placements_of(id).count(),
        4,
        "whoever still has to destroy something is told what"
    );
    step(&mut state, destroyed(300)).unwrap();
    // The third is gone for good.
    assert_eq!(
        step(&mut state, MetaCommand::Remove { server: ServerId(302), live: true }).unwrap_err(),
        Refusal::Alive(ServerId(302))
    );
    step(&mut state, MetaCommand::Remove { server: ServerId(302), live: false }).unwrap();
    assert!(state.tables.is_empty() && state.placements.is_empty());
}

#[test]
fn removed_servers_stay_out() {
    let mut state = with_servers(&[300, 301, 302]);
    let remove = |id| MetaCommand::Remove { server: ServerId(id), live: false };
    step(&mut state, three("a", &[300, 301, 302])).unwrap();
    let refused = step(&mut state, remove(301)).unwrap_err();
    assert_eq!(
        refused,
        Refusal::HoldsReplicas { server: ServerId(301), replicas: 4, tables: "a".into() }
    );
    assert_eq!(step(&mut state, remove(9)).unwrap_err(), Refusal::NoServer(ServerId(9)));
    let mut state = with_servers(&[300, 301]);
    step(&mut state, remove(301)).unwrap();
    assert_eq!(
        step(&mut state, MetaCommand::Register(server(301))).unwrap_err(),
        Refusal::Removed(ServerId(301))
    );
    assert_eq!(state.servers.len(), 1);
}

#[test]
fn servers_are_registered_as_they_are() {
    let mut state = with_servers(&[300]);
    assert_eq!(
        step(&mut state, MetaCommand::Register(server(300))).unwrap().changes,
        [],
        "known already"
    );
    let moved = Server { address: "elsewhere:7".into(), ..server(300) };
    step(&mut state, MetaCommand::Register(moved.clone())).unwrap();
    assert_eq!(state.servers[&ServerId(300)], RegisteredServer { server: moved, since_ms: 1 });
    let nowhere = Server { address: String::new(), ..server(301) };
    assert!(matches!(step(&mut state, MetaCommand::Register(nowhere)), Err(Refusal::BadServer(_))));
    for id in 1000..1000 + SERVERS_MAX as u64 - 1 {
        step(&mut state, MetaCommand::Register(server(id))).unwrap();
    }
    assert_eq!(
        step(&mut state, MetaCommand::Register(server(5000))).unwrap_err(),
        Refusal::TooManyServers
    );
}

#[test]
fn the_cluster_id_is_set_once() {
    let mut state = MetaState::default();
    step(&mut state, MetaCommand::BootstrapCluster { cluster: 7 }).unwrap();
    assert_eq!(step(&mut state, MetaCommand::BootstrapCluster { cluster: 8 }).unwrap().changes, []);
    assert_eq!(state.cluster, Some(7));
}

#[test]
fn partitions_of_all_tables_have_an_end() {
    let mut state = with_servers(&[300]);
    let large = |name: String| MetaCommand::Create {
        name,
        partitions: PARTITIONS_MAX,
        replicas: 1,
        envs: BTreeMap::new(),
        live: live(),
        unhealthy: Vec::new(),
    };
    for n in 0..64 {
        step(&mut state, large(format!("t{n}"))).unwrap();
    }
    assert_eq!(step(&mut state, create("one-more")).unwrap_err(), Refusal::TooManyPartitions);
}

#[test]
fn a_meta_index_has_one_server_until_it_is_released() {
    let mut state = with_servers(&[300, 301]);
    let sit = |server| MetaCommand::ClaimMetaIndex { index: 2, server: ServerId(server) };
    step(&mut state, sit(300)).unwrap();
    assert_eq!(step(&mut state, sit(300)).unwrap().changes, [], "it is its own");
    let taken = Refusal::MetaIndexTaken { index: 2, server: ServerId(300) };
    assert_eq!(step(&mut state, sit(301)).unwrap_err(), taken);
    let release = |index, live: &[u64]| MetaCommand::ReleaseMetaIndex {
        index,
        live: live.iter().copied().map(ServerId).collect(),
    };
    assert_eq!(step(&mut state, release(1, &[])).unwrap_err(), Refusal::NoMetaIndex(1));
    assert_eq!(
        step(&mut state, release(2, &[300, 301])).unwrap_err(),
        Refusal::Alive(ServerId(300))
    );
    step(&mut state, release(2, &[301])).unwrap();
    step(&mut state, sit(301)).unwrap();
    // Who is forgotten keeps none.
    step(&mut state, MetaCommand::Remove { server: ServerId(301), live: false }).unwrap();
    assert!(state.meta_members.is_empty());
}
