package control

import (
	"net/http"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/why"
)

// platformRoutes are the platform itself: its servers, its reasons, its health.
func (s *Server) platformRoutes() []Route {
	return []Route{
		at("GET /v1/health", scopeNone, "health", s.health, "Say that the API answers", nil, ok(api.Health{})),
		at("GET /v1/openapi.json", scopeNone, "openapi", s.openAPI, "Read this document", nil, ok(map[string]any{})),
		at("GET /v1/ca", scopeRead, "ca.read", s.getCA, "Read the certificate of the server's development CA, as PEM", nil, text()),
		at("GET /v1/platform/regions", scopeRead, "region.list", s.listRegions, "List the regions that have a server, and their room", nil, ok(api.Regions{}),
			query("cpu_kind", "string", "room for machines of this kind of CPU: shared (default) or performance"),
			query("cpus", "integer", "and of as many vCPUs; 1"),
			query("memory_mb", "integer", "and of so much memory; 512"),
			query("all", "boolean", "those too that were described and have no server")),
		at("PUT /v1/platform/regions/{region}", scopeAdmin, "region.set", s.setRegion, "Describe a region: its name and place", api.SetRegion{}, ok(api.Region{})),
		at("DELETE /v1/platform/regions/{region}", scopeAdmin, "region.set", s.removeRegion, "Forget how a region was described", nil, empty(http.StatusNoContent)),
		at("POST /v1/platform/placements", scopeRead, "placement.plan", s.planPlacements, "Say where machines of a size would go now; nothing is reserved", api.PlacementRequest{}, ok(api.Placements{})),
		at("GET /metrics", scopeRead, "metrics.read", s.metrics, "Read what the server measures of apps, in Prometheus' text form", nil, text()),
		at("GET /v1/why/{what}", scopeRead, "why", s.getWhy, "Read why something happened, newest first", nil, ok([]why.Record{}),
			query("kind", "string", "only records of this kind").many(),
			query("limit", "integer", "how many, 1 to 1000; 50")),
	}
}

func (s *Server) health(w http.ResponseWriter, _ *call) error {
	reply(w, http.StatusOK, api.Health{Status: "ok"})
	return nil
}

func (s *Server) getCA(w http.ResponseWriter, _ *call) error {
	if len(s.CA) == 0 {
		return volant.Errorf(volant.ErrNotFound, "this server has no development CA")
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(s.CA) // the caller is gone: nobody to tell
	return nil
}

func (s *Server) openAPI(w http.ResponseWriter, _ *call) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(api.OpenAPI) // the caller is gone: nobody to tell
	return nil
}
