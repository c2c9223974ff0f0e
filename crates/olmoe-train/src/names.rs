//! Enums whose values have names: the names are listed once, and reading, writing and errors follow from that.

use olmoe_model::config::{closest, shorten};

/// A name that is none of those known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not known{}; expected one of {}", suggestion(found, known), known.join(", "))]
pub struct UnknownName {
    /// What the name is of.
    pub what: &'static str,
    /// The name.
    pub found: String,
    /// Those known.
    pub known: &'static [&'static str],
}

fn suggestion(found: &str, known: &[&'static str]) -> String {
    closest(found, known).map_or(String::new(), |name| format!(", did you mean {name:?}?"))
}

impl UnknownName {
    pub(crate) fn new(what: &'static str, found: &str, known: &'static [&'static str]) -> UnknownName {
        UnknownName { what, found: shorten(found), known }
    }
}

/// Declares an enum: `"what it is of"; pub enum Name { Variant = "name" | "another name for it", }`.
macro_rules! names {
    ($what:literal; $(#[$meta:meta])* pub enum $name:ident {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal $(| $alias:literal)*,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum $name { $($(#[$variant_meta])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant,)*];
            /// What they may be called.
            pub const NAMES: &[&str] = &[$($text, $($alias,)*)*];

            /// The name that configurations have for it.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::names::UnknownName;

            fn from_str(text: &str) -> Result<$name, $crate::names::UnknownName> {
                match text {
                    $($text $(| $alias)* => Ok($name::$variant),)*
                    _ => Err($crate::names::UnknownName::new($what, text, $name::NAMES)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::names::UnknownName;

            fn try_from(text: String) -> Result<$name, $crate::names::UnknownName> {
                text.parse()
            }
        }

        impl From<$name> for &'static str {
            fn from(value: $name) -> &'static str {
                value.name()
            }
        }
    };
}
pub(crate) use names;
