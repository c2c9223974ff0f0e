//! Shots: the answered questions before a question.

use olmoe_data::random::Mersenne;

use super::description::{Draw, ShotSource, Shots, Source};
use super::error::TaskError;
use crate::source::{FileHash, Row, Rows};

/// A row with its place in the data set.
#[derive(Clone)]
pub(super) struct Numbered {
    pub(super) place: usize,
    pub(super) row: Row,
}

/// The rows that shots are drawn from.
pub(super) struct ShotPool<'a> {
    shots: &'a Shots,
    rows: Vec<Numbered>,
    /// Whether a question must not be its own shot.
    without_question: bool,
    random: Mersenne,
}

impl<'a> ShotPool<'a> {
    /// The pool; `own` are the rows of the questions, and `read` reads others.
    pub(super) fn new(
        shots: &'a Shots,
        own: &[Numbered],
        read: &mut dyn FnMut(&Source) -> Result<Rows, TaskError>,
    ) -> Result<(ShotPool<'a>, Vec<FileHash>), TaskError> {
        let (rows, files) = match &shots.from {
            _ if shots.count == 0 => (Vec::new(), Vec::new()),
            None => (own.to_vec(), Vec::new()),
            Some(ShotSource::Rows(rows)) => (numbered(rows.clone()), Vec::new()),
            Some(ShotSource::Source(source)) => {
                let read = read(source)?;
                (numbered(read.rows), read.files)
            }
        };
        let random = Mersenne::python(shots.seed.unwrap_or(0));
        let without_question = shots.without_question.unwrap_or(shots.from.is_none());
        Ok((ShotPool { shots, rows, without_question, random }, files))
    }

    /// The text between a shot's prompt and its answer, where it is not the task's.
    pub(super) fn delimiter(&self) -> Option<&str> {
        self.shots.delimiter.as_deref()
    }

    /// The text after each shot.
    pub(super) fn separator(&self) -> &str {
        &self.shots.separator
    }

    /// The shots of a question, or what was found and expected instead.
    pub(super) fn draw(&mut self, question: &Numbered) -> Result<Vec<&Numbered>, (String, String)> {
        let count = self.shots.count;
        if count == 0 {
            return Ok(Vec::new());
        }
        let same = |row: &&Numbered| {
            self.shots.same.as_ref().is_none_or(|column| row.row.get(column) == question.row.get(column))
        };
        let pool: Vec<&Numbered> = self.rows.iter().filter(same).collect();
        let is_other = |row: &&Numbered| !self.without_question || row.row != question.row;
        let wanted = match self.shots.draw {
            Draw::First => pool.into_iter().filter(is_other).take(count).collect::<Vec<_>>(),
            draw => {
                let mut again = self.random.clone();
                let random = if draw == Draw::Sample { &mut self.random } else { &mut again };
                let drawn = random.sample(pool.len(), count + usize::from(self.without_question));
                let drawn: Vec<&Numbered> = drawn.into_iter().map(|i| pool[i]).filter(is_other).take(count).collect();
                if drawn.len() < count {
                    // Rows that are equal to the question's were drawn more than once.
                    let others: Vec<&Numbered> = pool.into_iter().filter(is_other).collect();
                    random.sample(others.len(), count).into_iter().map(|i| others[i]).collect()
                } else {
                    drawn
                }
            }
        };
        if wanted.len() < count {
            let found = format!("{count} for row {} with {} rows to take them from", question.place + 1, wanted.len());
            return Err((found, "no more shots than there are rows for them".to_owned()));
        }
        Ok(wanted)
    }
}

fn numbered(rows: Vec<Row>) -> Vec<Numbered> {
    (0..).zip(rows).map(|(place, row)| Numbered { place, row }).collect()
}
