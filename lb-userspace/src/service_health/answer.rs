//! One answer, byte by byte as kube-proxy gives it (S52).

use super::Wanted;
use crate::board::Board;
use crate::health;
use crate::http::{self, Answer};
use crate::problem::ObjectKey;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde::Serialize;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Answers any path: 200 while a ready endpoint is here and the agent does its work.
pub(super) fn answer(service: &ObjectKey, v6: bool, wanted: &Wanted, board: &Board) -> Answer {
    let count = wanted.checks.get(service).map_or(0, |check| check.local[usize::from(v6)]);
    let healthy = health::programs_services(board);
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Body {
        service: Named { namespace: &service.namespace, name: &service.name },
        local_endpoints: count,
        service_proxy_healthy: healthy,
    };
    let mut answer = http::json(status, &body);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(count));
    answer
}
