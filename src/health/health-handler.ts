import { create, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import {
  type CheckResponse,
  CheckResponseSchema,
  type HealthService,
  Probe,
  ServingStatus as StatusProto,
} from "../../gen/formdev/health/v1/health_service_pb.ts";
import {
  type Health as GrpcHealthService,
  HealthCheckResponse_ServingStatus as GrpcStatus,
} from "../../gen/grpc/health/v1/health_pb.ts";
import { AppError } from "../errors.ts";
import { delay } from "../lib/delay.ts";
import type { Health, HealthReport, ServingStatus } from "./health.ts";

/** Translates HealthService to the health use case. */
export function createHealthHandler(health: Health): ServiceImpl<typeof HealthService> {
  return {
    async check({ probe }) {
      // Whoever reads this answer knows that the process works.
      if (probe === Probe.LIVENESS) return { status: StatusProto.SERVING };
      return toCheckResponse(await health.report());
    },
  };
}

/** How often a watcher's state is looked at: as old as a report may be. */
const watchMs = 1000;

/**
 * `grpc.health.v1.Health` for tools that know it (grpc_health_probe, Kubernetes, Envoy). The empty service name means the
 * whole server; `services` are the names that mean the same. Watch ends with the call's deadline, or when the service drains.
 */
export function createGrpcHealthHandler(
  health: Health,
  services: ReadonlySet<string>,
): ServiceImpl<typeof GrpcHealthService> {
  const isKnown = (service: string) => service === "" || services.has(service);
  const status = async () =>
    (await health.report()).status === "not-serving" ? GrpcStatus.NOT_SERVING : GrpcStatus.SERVING;

  return {
    async check({ service }) {
      if (!isKnown(service)) throw new ConnectError("unknown service", Code.NotFound);
      return { status: await status() };
    },

    async list() {
      const now = await status();
      const names = ["", ...services];
      return { statuses: Object.fromEntries(names.map((name) => [name, { status: now }])) };
    },

    async *watch({ service }, { signal }) {
      let told: GrpcStatus | undefined;
      for (;;) {
        const now = isKnown(service) ? await status() : GrpcStatus.SERVICE_UNKNOWN;
        if (now !== told) yield { status: now };
        told = now;
        // A watcher would hold the drain up until its deadline: it is told, and sent away.
        if (health.isDraining) throw new AppError("unavailable", "the service is stopping");
        await delay(watchMs, signal);
      }
    },
  };
}

/** `GET /health` and its liveness twin: the answers of HealthService/Check, with a status that load balancers read. */
export function createHealthPages(health: Health) {
  return [
    {
      path: "/health",
      async answer() {
        const report = await health.report();
        return {
          status: report.status === "not-serving" ? 503 : 200,
          body: toJson(CheckResponseSchema, toCheckResponse(report)),
        };
      },
    },
    {
      path: "/health/live",
      async answer() {
        const alive = create(CheckResponseSchema, { status: StatusProto.SERVING });
        return { status: 200, body: toJson(CheckResponseSchema, alive) };
      },
    },
  ];
}

const statuses: Readonly<Record<ServingStatus, StatusProto>> = {
  serving: StatusProto.SERVING,
  degraded: StatusProto.DEGRADED,
  "not-serving": StatusProto.NOT_SERVING,
};

/** The service itself is SERVING also when a component it can do without is DEGRADED. */
function toCheckResponse({ status, components }: HealthReport): CheckResponse {
  return create(CheckResponseSchema, {
    status: status === "not-serving" ? StatusProto.NOT_SERVING : StatusProto.SERVING,
    components: components.map((component) => ({
      name: component.name,
      status: statuses[component.status],
    })),
  });
}
