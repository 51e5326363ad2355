//! Groups of the documentation and ACL categories.

/// Redis's groups of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Group {
    String,
    Hash,
    /// Commands of Bridle, which Redis does not have.
    Bridle,
    List,
    Set,
    SortedSet,
    Stream,
    Bitmap,
    HyperLogLog,
    Geo,
    Generic,
    Transactions,
    Scripting,
    PubSub,
    Connection,
    Server,
}

impl Group {
    /// Every group, in the order of `proxy/COMMANDS.md`.
    pub const ALL: [Group; 16] = [
        Group::String,
        Group::Hash,
        Group::Bridle,
        Group::List,
        Group::Set,
        Group::SortedSet,
        Group::Stream,
        Group::Bitmap,
        Group::HyperLogLog,
        Group::Geo,
        Group::Generic,
        Group::Transactions,
        Group::Scripting,
        Group::PubSub,
        Group::Connection,
        Group::Server,
    ];

    /// The name in COMMAND DOCS.
    pub const fn name(self) -> &'static str {
        self.attributes().0
    }

    /// The heading in `proxy/COMMANDS.md`.
    pub const fn title(self) -> &'static str {
        self.attributes().1
    }

    /// The ACL category of all its commands, if they have one.
    pub const fn category(self) -> Option<Category> {
        self.attributes().2
    }

    const fn attributes(self) -> (&'static str, &'static str, Option<Category>) {
        match self {
            Group::String => ("string", "Strings", Some(Category::String)),
            Group::Hash => ("hash", "Hashes", Some(Category::Hash)),
            Group::Bridle => ("bridle", "Hashes, beyond Redis", Some(Category::Hash)),
            Group::List => ("list", "Lists", Some(Category::List)),
            Group::Set => ("set", "Sets", Some(Category::Set)),
            Group::SortedSet => ("sorted-set", "Sorted sets", Some(Category::SortedSet)),
            Group::Stream => ("stream", "Streams", Some(Category::Stream)),
            Group::Bitmap => ("bitmap", "Bitmaps", Some(Category::Bitmap)),
            Group::HyperLogLog => ("hyperloglog", "HyperLogLog", Some(Category::HyperLogLog)),
            Group::Geo => ("geo", "Geospatial indexes", Some(Category::Geo)),
            Group::Generic => ("generic", "Keys", None),
            Group::Transactions => ("transactions", "Transactions", Some(Category::Transaction)),
            Group::Scripting => ("scripting", "Scripts and functions", Some(Category::Scripting)),
            // Its commands have the flag PUBSUB, from which the category follows.
            Group::PubSub => ("pubsub", "Publish and subscribe", None),
            Group::Connection => ("connection", "Connection", Some(Category::Connection)),
            Group::Server => ("server", "Server", None),
        }
    }
}

/// Redis's ACL categories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[repr(u8)]
pub enum Category {
    Keyspace,
    Read,
    Write,
    Set,
    SortedSet,
    List,
    Hash,
    String,
    Bitmap,
    HyperLogLog,
    Geo,
    Stream,
    PubSub,
    Admin,
    Fast,
    Slow,
    Blocking,
    Dangerous,
    Connection,
    Transaction,
    Scripting,
}

impl Category {
    /// Every category, in the order of ACL CAT.
    pub const ALL: [Category; 21] = [
        Category::Keyspace,
        Category::Read,
        Category::Write,
        Category::Set,
        Category::SortedSet,
        Category::List,
        Category::Hash,
        Category::String,
        Category::Bitmap,
        Category::HyperLogLog,
        Category::Geo,
        Category::Stream,
        Category::PubSub,
        Category::Admin,
        Category::Fast,
        Category::Slow,
        Category::Blocking,
        Category::Dangerous,
        Category::Connection,
        Category::Transaction,
        Category::Scripting,
    ];

    /// The name, without `@`.
    pub const fn name(self) -> &'static str {
        match self {
            Category::Keyspace => "keyspace",
            Category::Read => "read",
            Category::Write => "write",
            Category::Set => "set",
            Category::SortedSet => "sortedset",
            Category::List => "list",
            Category::Hash => "hash",
            Category::String => "string",
            Category::Bitmap => "bitmap",
            Category::HyperLogLog => "hyperloglog",
            Category::Geo => "geo",
            Category::Stream => "stream",
            Category::PubSub => "pubsub",
            Category::Admin => "admin",
            Category::Fast => "fast",
            Category::Slow => "slow",
            Category::Blocking => "blocking",
            Category::Dangerous => "dangerous",
            Category::Connection => "connection",
            Category::Transaction => "transaction",
            Category::Scripting => "scripting",
        }
    }

    /// The flag of entries that are in this category though neither their group nor their
    /// other flags imply it.
    pub const fn flag(self) -> u64 {
        1 << (CATEGORIES_FROM + self as u32)
    }
}

/// The lowest bit of the categories in an entry's flags.
const CATEGORIES_FROM: u32 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_every_group_and_category() {
        for (at, group) in Group::ALL.into_iter().enumerate() {
            assert_eq!(group as usize, at, "{group:?}");
        }
        assert_eq!(Group::ALL.len(), Group::Server as usize + 1);
        for (at, category) in Category::ALL.into_iter().enumerate() {
            assert_eq!(category as usize, at, "{category:?}");
        }
        assert_eq!(Category::ALL.len(), Category::Scripting as usize + 1);
    }
}
