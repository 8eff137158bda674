//! From the text of a manifest to its objects, each judged on its own.
//!
//! A file is cut into documents before anything is parsed, so that one that is broken costs only
//! itself. Each document becomes JSON (YAML is a detour), and the items of a `List` are cut out of
//! it without being read: what has not changed since the last time is never read further.

use crate::problem::{Kind, ObjectKey, ObjectRef};
use crate::source::fill::{Draft, FillConfig, ServiceDraft};
use crate::source::project::{self, MissingReady, Names};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::path::Path;

/// The API server's bound on all values of a Secret together, in bytes.
const LARGEST_SECRET: usize = 1024 * 1024;

/// Where in a file something is. All numbers start at 1.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    pub(super) document: usize,
    /// Of a `List`.
    pub(super) item: Option<usize>,
    pub(super) line: Option<usize>,
    /// Bytes above it, where `line` counts from there and not from the top: lines are counted
    /// only when there is a fault to tell.
    offset: usize,
}

impl Place {
    fn line(mut self, line: usize) -> Self {
        self.line = Some(line);
        self
    }
}

/// Counts the lines of faults from the top of the file.
pub(super) fn locate(text: &str, faults: &mut [Fault]) {
    faults.sort_by_key(|fault| fault.place.offset);
    let (mut counted, mut lines) = (0, 0);
    for fault in faults.iter_mut() {
        let offset = fault.place.offset.min(text.len());
        lines += text.as_bytes()[counted..offset].iter().filter(|byte| **byte == b'\n').count();
        counted = offset;
        fault.place.line = fault.place.line.map(|line| line + lines);
        fault.place.offset = 0;
    }
    faults.sort_by_key(|fault| (fault.place.document, fault.place.item, fault.place.line));
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(item) = self.item {
            write!(f, ", item {item}")?;
        }
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        Ok(())
    }
}

/// Something in a file that could not be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) place: Place,
    /// The object that it was, where that can be told.
    pub(super) object: Option<ObjectRef>,
    pub(super) reason: String,
    /// Whether objects may be hidden in it: then those that the file had before stay.
    pub(super) hides: bool,
}

/// An object in a file, not read any further than its name.
#[derive(Debug)]
pub(super) struct Document<'a> {
    pub(super) place: Place,
    pub(super) object: ObjectRef,
    pub(super) json: Cow<'a, str>,
    /// The YAML that it came from, and the lines above it: to find the line of an error.
    yaml: Option<(&'a str, usize)>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents<'a> {
    pub(super) documents: Vec<Document<'a>>,
    pub(super) faults: Vec<Fault>,
    /// How many documents the file has, those of no use among them.
    pub(super) count: usize,
}

/// Finds the objects in the text of a file.
pub(super) fn contents<'a>(path: &Path, text: &'a str) -> Contents<'a> {
    let mut contents = Contents::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let named_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    // JSON is YAML too, but much faster read as what it is.
    let looks_json = || text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok();
    contents.count = if named_json || looks_json() { contents.json(text) } else { contents.yaml(text) };
    contents
}

impl<'a> Contents<'a> {
    fn json(&mut self, text: &'a str) -> usize {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<&'a RawValue>();
        let mut place = Place::default();
        for value in stream {
            place.document += 1;
            match value {
                Ok(raw) => {
                    let source = Source { text: Some(text), yaml: None };
                    self.value(place.clone(), Cow::Borrowed(raw.get()), &source, None);
                }
                Err(error) => {
                    self.faults.push(Fault {
                        place: place.clone().line(error.line()),
                        object: None,
                        reason: format!("is not JSON: {}", without_place(&error)),
                        hides: true,
                    });
                    break;
                }
            }
        }
        place.document
    }

    fn yaml(&mut self, text: &'a str) -> usize {
        let mut place = Place::default();
        for (first_line, text) in cut(text) {
            place.document += 1;
            let options = yaml_options();
            match serde_saphyr::from_str_with_options::<serde_json::Value>(text, options) {
                Ok(serde_json::Value::Null) => place.document -= 1,
                Ok(value) => {
                    let source = Source { text: None, yaml: Some((text, first_line)) };
                    self.value(place.clone(), Cow::Owned(value.to_string()), &source, None);
                }
                Err(error) => {
                    let at = error.location().map_or(1, |location| location.line() as usize).max(1);
                    // An error may quote what it met, and a Secret is told nowhere.
                    let is_secret = text.lines().any(|line| line.contains("Secret"));
                    let reason = if is_secret {
                        "is not YAML".into()
                    } else {
                        format!("is not YAML: {}", plain(&error))
                    };
                    self.faults.push(Fault {
                        place: place.clone().line(first_line + at),
                        object: guess(text),
                        reason,
                        hides: true,
                    });
                }
            }
        }
        place.document
    }

    /// Takes one value: an object, or a list of them.
    fn value(&mut self, place: Place, json: Cow<'a, str>, source: &Source<'a>, list: Option<&Header>) {
        let place = source.place(place, &json);
        let mut fault = |object: Option<ObjectRef>, reason: String, hides: bool| {
            self.faults.push(Fault { place: place.clone(), object, reason, hides });
        };
        let mut header: Header = match serde_json::from_str(&json) {
            Ok(header) => header,
            Err(error) => return fault(None, format!("is no object: {}", without_place(&error)), true),
        };
        if let Some(list) = list {
            header.inherit(list);
        }
        let (version, kind) = (header.api_version.as_str(), header.kind.as_str());
        if kind.is_empty() || version.is_empty() {
            let missing = if kind.is_empty() { "kind" } else { "apiVersion" };
            return fault(None, format!("{missing} is missing; the object is ignored"), true);
        }
        if kind.ends_with("List") {
            return self.list(&place, json, source, &header);
        }
        let namespace = header.metadata.namespace.filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".into());
        let name = header.metadata.name.unwrap_or_default();
        let (kind, namespace) = match (version, kind) {
            ("v1", "Service") => (Kind::Service, namespace),
            ("v1", "Pod") => (Kind::Pod, namespace),
            ("v1", "Node") => (Kind::Node, String::new()),
            ("discovery.k8s.io/v1", "EndpointSlice") => (Kind::EndpointSlice, namespace),
            ("v1", "Secret") => (Kind::Secret, namespace),
            ("networking.k8s.io/v1", "Ingress") => (Kind::Ingress, namespace),
            ("networking.k8s.io/v1", "IngressClass") => (Kind::IngressClass, String::new()),
            // Part of many manifests, and of no use here.
            ("v1", "Namespace" | "ConfigMap") => return,
            // Without a name it may be one of ours, cut off within its kind.
            _ => {
                let reason = format!("kind {kind} of {version} is not read; the object is ignored");
                return fault(None, reason, name.is_empty());
            }
        };
        if name.is_empty() {
            return fault(None, format!("{kind}: metadata.name is missing; the object is ignored"), true);
        }
        let object = ObjectRef { kind, key: ObjectKey { namespace, name } };
        let yaml = source.yaml.filter(|_| place.item.is_none());
        self.documents.push(Document { place, object, json, yaml });
    }

    fn list(&mut self, place: &Place, json: Cow<'a, str>, source: &Source<'a>, header: &Header) {
        let mut each = |items: Vec<Cow<'a, str>>| {
            for (i, item) in items.into_iter().enumerate() {
                let place = Place { item: Some(i + 1), ..place.clone() };
                self.value(place, item, source, Some(header));
            }
        };
        let error = match json {
            Cow::Borrowed(json) => match serde_json::from_str::<List<'a>>(json) {
                Ok(list) => {
                    return each(list.items.iter().map(|item| Cow::Borrowed(item.get())).collect());
                }
                Err(error) => error,
            },
            Cow::Owned(json) => match serde_json::from_str::<List<'_>>(&json) {
                Ok(list) => {
                    return each(list.items.iter().map(|item| Cow::Owned(item.get().to_owned())).collect());
                }
                Err(error) => error,
            },
        };
        let reason = format!("items of {} cannot be read: {}", header.kind, without_place(&error));
        self.faults.push(Fault { place: place.clone(), object: None, reason, hides: true });
    }
}

/// What texts are cut from: the file itself (JSON), or a document's YAML and the lines above it.
struct Source<'a> {
    text: Option<&'a str>,
    yaml: Option<(&'a str, usize)>,
}

impl Source<'_> {
    /// Where a piece of the text begins.
    fn place(&self, place: Place, piece: &str) -> Place {
        let (offset, line) = match (self.text, self.yaml) {
            (Some(text), _) => ((piece.as_ptr() as usize).saturating_sub(text.as_ptr() as usize), 1),
            (None, yaml) => (0, yaml.map_or(1, |(_, above)| above + 1)),
        };
        Place { offset, ..place }.line(line)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Header {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    metadata: HeaderMeta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HeaderMeta {
    name: Option<String>,
    namespace: Option<String>,
}

impl Header {
    /// Items of a `ServiceList` do not say what they are.
    fn inherit(&mut self, list: &Self) {
        let kind = list.kind.strip_suffix("List").unwrap_or_default();
        if self.kind.is_empty() && !kind.is_empty() {
            self.kind = kind.to_owned();
            if self.api_version.is_empty() {
                self.api_version.clone_from(&list.api_version);
            }
        }
    }
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    items: Vec<&'a RawValue>,
}

impl Document<'_> {
    /// Reads the object.
    ///
    /// # Errors
    /// Why it cannot be used as a whole; single fields are told by the object itself.
    pub(super) fn read(&self, config: &FillConfig, names: &mut Names) -> Result<Draft, Box<Fault>> {
        match self.object.kind {
            Kind::Service => {
                let mut service: core::Service = self.typed()?;
                self.fill_meta(&mut service.metadata);
                self.require_ports(&service)?;
                Ok(Draft::Service(Box::new(ServiceDraft::read(service, config))))
            }
            Kind::EndpointSlice => {
                let mut slice: discovery::EndpointSlice = self.typed()?;
                self.fill_meta(&mut slice.metadata);
                if slice.address_type.is_empty() {
                    return Err(Box::new(self.fault("addressType: is missing".into())));
                }
                Ok(project::slice(&slice, names).map_or(Draft::Unused, Draft::EndpointSlice))
            }
            Kind::Pod => {
                let mut pod: core::Pod = self.typed()?;
                self.fill_meta(&mut pod.metadata);
                Ok(Draft::Pod(project::pod(&pod, MissingReady::Ready)))
            }
            Kind::Node => Ok(Draft::Node(project::node(&self.typed()?))),
            Kind::Ingress => {
                let mut ingress: networking::Ingress = self.typed()?;
                self.fill_meta(&mut ingress.metadata);
                self.require_rules(&ingress)?;
                Ok(Draft::Ingress(Box::new(project::ingress(&ingress))))
            }
            Kind::IngressClass => {
                let class: networking::IngressClass = self.typed()?;
                let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_ref());
                if controller.is_none_or(String::is_empty) {
                    return Err(Box::new(self.fault("spec.controller: is missing".into())));
                }
                Ok(Draft::IngressClass(project::ingress_class(&class)))
            }
            Kind::Secret => {
                let mut secret: core::Secret = self.typed()?;
                self.fill_meta(&mut secret.metadata);
                self.require_data(&secret)?;
                Ok(Draft::Secret(project::secret(secret)))
            }
            Kind::Namespace | Kind::ServiceCidr | Kind::ConfigMap | Kind::File | Kind::Agent => {
                Ok(Draft::Unused)
            }
        }
    }

    fn fill_meta(&self, meta: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
        meta.namespace = Some(self.object.key.namespace.clone());
    }

    /// A Service that is cut off before its ports is still well-formed YAML; the API server
    /// requires them of all but these two sorts, and so the cut is seen.
    fn require_ports(&self, service: &core::Service) -> Result<(), Box<Fault>> {
        let spec = service.spec.as_ref();
        let has_ports = spec.and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
        let exempt = spec.is_some_and(|spec| {
            spec.type_.as_deref() == Some("ExternalName") || spec.cluster_ip.as_deref() == Some("None")
        });
        if has_ports || exempt { Ok(()) } else { Err(Box::new(self.fault("spec.ports: is missing".into()))) }
    }

    /// One that is cut off before its rules: as with a Service's ports.
    fn require_rules(&self, ingress: &networking::Ingress) -> Result<(), Box<Fault>> {
        let spec = ingress.spec.as_ref();
        let has_rules = spec.and_then(|spec| spec.rules.as_ref()).is_some_and(|rules| !rules.is_empty());
        if has_rules || spec.is_some_and(|spec| spec.default_backend.is_some()) {
            return Ok(());
        }
        Err(Box::new(self.fault("spec.rules: is missing, and spec.defaultBackend too".into())))
    }

    /// Both parts of a certificate are there, empty or not, and all of it within the API
    /// server's bound.
    fn require_data(&self, secret: &core::Secret) -> Result<(), Box<Fault>> {
        let fault = |reason: String| Err(Box::new(self.fault(reason)));
        let sizes = secret.data.iter().flatten().map(|(_, value)| value.0.len());
        let texts = secret.string_data.iter().flatten().map(|(_, value)| value.len());
        if sizes.chain(texts).sum::<usize>() > LARGEST_SECRET {
            return fault(format!("data: is more than {LARGEST_SECRET} bytes"));
        }
        if secret.type_.as_deref() == Some(project::TLS_TYPE) {
            let has = |key: &str| {
                secret.data.as_ref().is_some_and(|data| data.contains_key(key))
                    || secret.string_data.as_ref().is_some_and(|data| data.contains_key(key))
            };
            for key in [project::TLS_CERT, project::TLS_KEY] {
                if !has(key) {
                    return fault(format!("data[{key}]: is missing"));
                }
            }
        }
        Ok(())
    }

    fn typed<T: DeserializeOwned>(&self) -> Result<T, Box<Fault>> {
        serde_json::from_str(&self.json).map_err(|_| Box::new(self.explain::<T>()))
    }

    /// Reads once more, slowly, to say which field is wrong and in which line it is.
    fn explain<T: DeserializeOwned>(&self) -> Fault {
        let reader = &mut serde_json::Deserializer::from_str(&self.json);
        let (reason, line) = match serde_path_to_error::deserialize::<_, T>(reader) {
            Ok(_) => ("cannot be read".to_owned(), 1),
            Err(error) => {
                // What a Secret holds is told nowhere, and an error may quote it.
                let reason = match self.object.kind == Kind::Secret {
                    true => "cannot be read".to_owned(),
                    false => without_place(error.inner()),
                };
                (format!("{}: {reason}", error.path()), error.inner().line().max(1))
            }
        };
        let mut fault = self.fault(reason);
        if matches!(self.json, Cow::Borrowed(_)) {
            fault.place.line = Some(line);
        }
        if let Some((text, above)) = self.yaml
            && let Err(error) = serde_saphyr::from_str_with_options::<T>(text, yaml_options())
            && let Some(location) = error.location()
        {
            fault.place.line = Some(above + location.line() as usize);
        }
        fault
    }

    pub(super) fn fault(&self, reason: String) -> Fault {
        Fault { place: self.place.clone(), object: Some(self.object.clone()), reason, hides: true }
    }
}

/// Cuts YAML into documents, each with the number of lines above it. A line that begins with
/// `---` ends a document even inside quotes and block scalars, so nothing has to be parsed for
/// this. Documents of nothing but comments are left out.
fn cut(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut above, mut holds_something) = (0, 0, false);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let end =
            if is_marker("---") { Some(offset) } else { is_marker("...").then_some(offset + line.len()) };
        if let Some(end) = end
            && holds_something
        {
            documents.push((above, &text[start..end]));
            holds_something = false;
        }
        if let Some(end) = end {
            start = end;
            above = number + usize::from(end > offset);
        }
        let body = line.strip_prefix("---").unwrap_or(line).trim_start();
        let is_content = !body.is_empty() && !body.starts_with('#') && !line.starts_with('%');
        holds_something |= is_content && !is_marker("...");
        offset += line.len();
    }
    if holds_something {
        documents.push((above, &text[start..]));
    }
    documents
}

/// Which object a document was that cannot be parsed: read from the lines that say it, where
/// there is one of each.
fn guess(text: &str) -> Option<ObjectRef> {
    let only = |prefix: &str| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(prefix)).map(scalar);
        values.next().filter(|value| !value.is_empty() && values.next().is_none())
    };
    let kind = match only("kind:")? {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::EndpointSlice,
        "Pod" => Kind::Pod,
        "Node" => Kind::Node,
        "Ingress" => Kind::Ingress,
        "IngressClass" => Kind::IngressClass,
        "Secret" => Kind::Secret,
        _ => return None,
    };
    let mut meta = text.lines().skip_while(|line| scalar_key(line) != Some("metadata")).skip(1).peekable();
    let indent = meta.peek().map(|line| line.len() - line.trim_start().len()).filter(|indent| *indent > 0)?;
    let (mut name, mut namespace) = (None, None);
    for line in meta.take_while(|line| line.starts_with(' ')) {
        if line.len() - line.trim_start().len() != indent {
            continue;
        }
        if let Some(value) = line.trim_start().strip_prefix("name:") {
            name = Some(scalar(value));
        } else if let Some(value) = line.trim_start().strip_prefix("namespace:") {
            namespace = Some(scalar(value));
        }
    }
    let name = name.filter(|name| !name.is_empty())?;
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default");
    let namespace = if matches!(kind, Kind::Node | Kind::IngressClass) { "" } else { namespace };
    Some(ObjectRef { kind, key: ObjectKey::new(namespace, name) })
}

fn scalar(value: &str) -> &str {
    value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\''])
}

fn scalar_key(line: &str) -> Option<&str> {
    line.trim_end().strip_suffix(':')
}

/// Budgets against hostile input are off: a manifest is written by whoever runs the agent, and a
/// list of a whole cluster is large.
fn yaml_options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.budget = None;
    options.with_snippet = false;
    options
}

/// The reason without its place, which is told beside it.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let text = text.lines().next().unwrap_or(&text);
    text.strip_prefix("error: ").unwrap_or(text).to_owned()
}
