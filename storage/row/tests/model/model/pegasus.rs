//! Check-and-mutate.

use bytes::Bytes;
use row::Key;
use row::op::{Check, Mutation, Refusal};

use super::{Model, int};

impl Model {
    /// Applies the mutations if the check holds; returns if it does, and the value that
    /// was checked.
    pub(super) fn check_and_mutate(
        &mut self,
        key: &Key,
        check_sortkey: &Bytes,
        (check, operand): (Check, &Bytes),
        mutations: &[Mutation],
    ) -> Result<(bool, Option<Bytes>), Refusal> {
        let mut hash = self.fields(key)?.unwrap_or_default();
        let value = hash.get(check_sortkey).map(|(value, _)| value.clone());
        let done = holds(check, operand, value.as_ref())?;
        if done {
            for mutation in mutations {
                match mutation {
                    Mutation::Delete { sortkey } => hash.remove(sortkey),
                    Mutation::Put { sortkey, value, ttl } => {
                        let until =
                            self.field_until(*ttl, hash.get(sortkey).and_then(|(_, at)| *at));
                        if until.is_some_and(|at| at <= self.now) {
                            hash.remove(sortkey)
                        } else {
                            hash.insert(sortkey.clone(), (value.clone(), until))
                        }
                    }
                };
            }
            self.change_fields(key, hash);
        }
        Ok((done, value))
    }
}

fn holds(check: Check, operand: &Bytes, value: Option<&Bytes>) -> Result<bool, Refusal> {
    let Some(value) = value else {
        return Ok(matches!(check, Check::None | Check::NotExist | Check::NotExistOrEmpty));
    };
    let ints = || {
        Ok((
            int(value).ok_or(Refusal::CheckValueNotInteger)?,
            int(operand).ok_or(Refusal::CheckOperandNotInteger)?,
        ))
    };
    Ok(match check {
        Check::None | Check::Exist => true,
        Check::NotExist => false,
        Check::NotExistOrEmpty => value.is_empty(),
        Check::NotEmpty => !value.is_empty(),
        Check::MatchAnywhere => {
            String::from_utf8_lossy(value).contains(&*String::from_utf8_lossy(operand))
        }
        Check::BytesLess => value < operand,
        Check::BytesEqual => value == operand,
        Check::IntLess => ints().map(|(a, b)| a < b)?,
        Check::IntGreaterOrEqual => ints().map(|(a, b)| a >= b)?,
        other => panic!("not drawn: {other:?}"),
    })
}
