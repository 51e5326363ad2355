//! SORT and SORT_RO. They sort lists, sets and sorted sets, which do not exist yet: a key
//! is either missing, which gives an empty reply, or of the wrong type. The options are
//! checked all the same. STORE is refused.

use row::op::{Answer, Op};

use crate::args::integer;
use crate::table::flags::{DANGEROUS, DENYOOM, READONLY, WRITE};
use crate::table::{Command, Group, Keys};
use crate::{Args, Plan, PlanResult, Reply, errors};

/// SORT and SORT_RO.
pub(crate) static TABLE: &[Command] = &[
    Command {
        name: "sort",
        arity: -2,
        flags: WRITE | DENYOOM | DANGEROUS,
        keys: Keys::ONE.with("RO access"),
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
        flags: READONLY | DANGEROUS,
        keys: Keys::ONE,
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

fn sort(args: Args) -> PlanResult {
    sorted(args, |args| args.option("STORE").is_some())
}

fn sort_ro(args: Args) -> PlanResult {
    sorted(args, |_| false)
}

fn sorted(mut args: Args, take_store: fn(&mut Args) -> bool) -> PlanResult {
    let key = args.next_arg();
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
    Plan::one(Op::Inspect { key }, |answer| match answer {
        Answer::Row(None) => Reply::Array(Vec::new()),
        Answer::Row(Some(_)) => errors::refusal(row::Refusal::WrongType),
        _ => errors::no_answer(),
    })
}
