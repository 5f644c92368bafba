package control

import "github.com/volant-edge/volant/api"

// accountRoutes are who may do what, and what an app is given: addresses, secrets, certificates.
func (s *Server) accountRoutes() []Route {
	return []Route{
		at("GET /v1/apps/{app}/ip_assignments", scopeRead, "ip.list", s.listAddresses, "List an app's addresses", nil, ok(api.IPList{})),
	}
}
