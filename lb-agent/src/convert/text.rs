//! Borrowing, bounded and forgiving building blocks of the subset types.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Text that borrows from the input where it can; `null` and absence are empty text.
#[derive(Debug, Default, Clone)]
pub struct Text<'a>(Cow<'a, str>);

impl Text<'_> {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Nullable;

        impl<'de> Visitor<'de> for Nullable {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }

            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
                Word::deserialize(d).map(|word| word.0)
            }
        }
        deserializer.deserialize_option(Nullable)
    }
}

/// Text that must be there: keys of maps.
struct Word<'a>(Text<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for Word<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowing;

        impl<'de> Visitor<'de> for Borrowing {
            type Value = Word<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Word(Text(Cow::Borrowed(text))))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Word(Text(Cow::Owned(text.to_owned()))))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(Word(Text(Cow::Owned(text))))
            }
        }
        deserializer.deserialize_str(Borrowing)
    }
}

/// The first `N` elements of a list; `null` and absence are the empty list.
#[derive(Debug)]
pub struct Bounded<T, const N: usize> {
    /// The elements that were kept.
    pub items: Vec<T>,
    /// How many more there are.
    pub beyond: usize,
}

impl<T, const N: usize> Default for Bounded<T, N> {
    fn default() -> Self {
        Self { items: Vec::new(), beyond: 0 }
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
            type Value = Bounded<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Bounded::default())
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Bounded::default())
            }

            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
                d.deserialize_seq(self)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Bounded::default();
                while kept.items.len() < N {
                    match list.next_element()? {
                        Some(item) => kept.items.push(item),
                        None => return Ok(kept),
                    }
                }
                while list.next_element::<IgnoredAny>()?.is_some() {
                    kept.beyond += 1;
                }
                Ok(kept)
            }
        }
        deserializer.deserialize_option(List(PhantomData))
    }
}

/// The labels that mean something here; the others are not kept.
#[derive(Debug, Default)]
pub struct Labels<'a> {
    /// `service.kubernetes.io/headless` is there, whatever its value (contract S-2).
    pub headless: bool,
    /// `service.kubernetes.io/service-proxy-name` is there, whatever its value (S-1).
    pub other_proxy: bool,
    /// `kubernetes.io/service-name` (E-3).
    pub service_name: Text<'a>,
    /// `topology.kubernetes.io/zone` (T-10).
    pub zone: Text<'a>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Labels<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of labels")
            }

            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Labels::default())
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(Labels::default())
            }

            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
                d.deserialize_map(self)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut labels = Labels::default();
                while let Some(Word(key)) = map.next_key()? {
                    match key.as_str() {
                        "kubernetes.io/service-name" => labels.service_name = map.next_value()?,
                        "topology.kubernetes.io/zone" => labels.zone = map.next_value()?,
                        other => {
                            labels.headless |= other == "service.kubernetes.io/headless";
                            labels.other_proxy |=
                                other == "service.kubernetes.io/service-proxy-name";
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(labels)
            }
        }
        deserializer.deserialize_option(Map)
    }
}
