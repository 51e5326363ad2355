//! Frozen bytes: the files of `tests/vectors/` against what this build writes.
//!
//! A line is a name, ` | `, and bytes in hex; a line that begins with `#` is a comment.

/// Asserts that a file of vectors holds exactly these bytes, and names the first line
/// that differs, as it should be for this build.
pub(crate) fn assert_frozen(file: &str, vectors: &str, now: &[(&str, Vec<u8>)]) {
    let lines: Vec<&str> =
        vectors.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    for (at, (what, bytes)) in now.iter().enumerate() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("{what} | {hex}");
        let found = lines.get(at).copied().unwrap_or("(no such line)");
        assert!(
            found == line,
            "tests/vectors/{file}, vector {}: this build writes the line\n{line}\nand the file \
             has\n{found}",
            at + 1,
        );
    }
    assert_eq!(lines.len(), now.len(), "tests/vectors/{file} has vectors that no test writes");
}

/// The bytes of a named vector.
pub(crate) fn vector(vectors: &str, what: &str) -> Vec<u8> {
    let mut lines = vectors.lines().filter_map(|line| line.split_once(" | "));
    let (_, hex) = lines.find(|(name, _)| *name == what).expect("the file has this vector");
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
        .collect()
}
