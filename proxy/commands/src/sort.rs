//! SORT and SORT_RO. They sort lists, sets and sorted sets, which do not exist yet: a key
//! is either missing, which gives an empty reply, or of the wrong type. The options are
//! checked all the same. STORE is refused.

use bytes::Bytes;
use row::RowOp;
use row::op::Answer;
use smallvec::smallvec;

use crate::args::integer;
use crate::table::flags::{DANGEROUS, DENYOOM, LOOKUP, READONLY, WRITE};
use crate::table::{Category, Command, FoundKey, FoundKeys, Group, KeyFlags, Keys};
use crate::{Args, Plan, PlanResult, Reply, errors, replies};

/// The categories of what can be sorted.
const SORTED: u64 = Category::Set.flag() | Category::SortedSet.flag() | Category::List.flag();

const BY_AND_GET: Keys = Keys::unknown(&["BY", "GET"]).with("RO access").noting(
    "For the optional BY/GET keyword. It is marked 'unknown' because the key names derive from \
     the content of the key we sort",
);

const STORE: Keys = Keys::unknown(&["STORE"]).with("OW update").noting(
    "For the optional STORE keyword. It is marked 'unknown' because the keyword can appear \
     anywhere in the argument array",
);

/// SORT and SORT_RO.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "sort",
        arity: -2,
        flags: WRITE | DENYOOM | DANGEROUS | SORTED | LOOKUP,
        keys: Keys::ONE.with("RO access").and(BY_AND_GET).and(STORE).found_by(sort_keys),
        group: Group::Generic,
        since: "1.0.0",
        complexity: "O(N+M*log(M)) where N is the number of elements in the list or set to sort, \
                     and M the number of returned elements. When the elements are not sorted, \
                     complexity is O(N).",
        summary: "Sorts the elements in a list, a set, or a sorted set, of which there are none \
                  yet.",
        syntax: "key [BY pattern] [LIMIT offset count] [GET pattern [GET pattern ...]] [ASC | \
                 DESC] [ALPHA]",
        plan: sort,
    },
    Command {
        name: "sort_ro",
        arity: -2,
        flags: READONLY | DANGEROUS | SORTED | LOOKUP,
        keys: Keys::ONE.and(BY_AND_GET).found_by(sort_ro_keys),
        group: Group::Generic,
        since: "7.0.0",
        complexity: "O(N+M*log(M)) where N is the number of elements in the list or set to sort, \
                     and M the number of returned elements. When the elements are not sorted, \
                     complexity is O(N).",
        summary: "Returns the sorted elements of a list, a set, or a sorted set, of which there \
                  are none yet.",
        syntax: "key [BY pattern] [LIMIT offset count] [GET pattern [GET pattern ...]] [ASC | \
                 DESC] [ALPHA]",
        plan: sort_ro,
    },
];

/// The key that is sorted. Keys that BY and GET read depend on what it holds.
fn sort_ro_keys(_: &[Bytes]) -> FoundKeys {
    smallvec![FoundKey { at: 1, flags: KeyFlags::READ }]
}

/// The key that is sorted, and that of the last STORE. As in Redis, that key is looked at
/// as an option too.
fn sort_keys(argv: &[Bytes]) -> FoundKeys {
    let (mut at, mut store) = (2, None);
    while let Some(option) = argv.get(at) {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        at += match () {
            () if is(b"limit") => 3,
            () if is(b"by") || is(b"get") => 2,
            () => {
                store = if is(b"store") && at + 1 < argv.len() { Some(at + 1) } else { store };
                1
            }
        };
    }
    let flags = const { KeyFlags::of("OW update") };
    let mut keys = sort_ro_keys(argv);
    keys.extend(store.map(|at| FoundKey { at, flags }));
    keys
}

fn sort(args: Args) -> PlanResult {
    sorted(args, |args| args.option("STORE").is_some())
}

fn sort_ro(args: Args) -> PlanResult {
    sorted(args, |_| false)
}

fn sorted(mut args: Args, take_store: fn(&mut Args) -> bool) -> PlanResult {
    let key = args.key();
    let mut store = false;
    while args.left() > 0 {
        match () {
            () if args.flag("ASC") || args.flag("DESC") || args.flag("ALPHA") => {}
            () if args.left() >= 3 && args.flag("LIMIT") => {
                for number in [args.next_arg(), args.next_arg()] {
                    integer(&number).ok_or_else(errors::not_integer)?;
                }
            }
            () if args.option("BY").is_some() || args.option("GET").is_some() => {}
            () if take_store(&mut args) => store = true,
            () => return Err(Args::syntax()),
        }
    }
    if store {
        return Err(Reply::error("ERR SORT with STORE is not supported yet"));
    }
    Plan::one(RowOp::Inspect { key }, |answer, reply| match answer {
        Answer::Row(None) => reply.array(0),
        Answer::Row(Some(_)) => errors::refusal(row::Refusal::WrongType).write(reply),
        _ => replies::no_answer(reply),
    })
}
