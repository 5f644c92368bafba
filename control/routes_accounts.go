package control

import "github.com/volant-edge/volant/api"

// accountRoutes are who may do what, and what an app is given: addresses, secrets, certificates.
func (s *Server) accountRoutes() []Route {
	return []Route{
		at("GET /v1/apps/{app}/ip_assignments", scopeRead, "ip.list", s.listAddresses, "List an app's addresses", nil, ok(api.IPList{})),

		at("GET /v1/apps/{app}/secrets", scopeRead, "secret.list", s.listSecrets, "List an app's secrets, without their values", nil, ok(api.AppSecrets{}), minVersion(), showSecrets()),
		at("POST /v1/apps/{app}/secrets", scopeDeploy, "secret.set", s.setSecrets, "Set and unset secrets in one step", api.SetSecrets{}, ok(api.AppSecrets{})),
		at("GET /v1/apps/{app}/secrets/{name}", scopeRead, "secret.get", s.getSecret, "Read what may be shown of a secret", nil, ok(api.AppSecret{}), minVersion(), showSecrets()),
		at("POST /v1/apps/{app}/secrets/{name}", scopeDeploy, "secret.set", s.setSecret, "Set a secret", api.SetSecret{}, created(api.ChangedSecret{})),
		at("DELETE /v1/apps/{app}/secrets/{name}", scopeDeploy, "secret.set", s.deleteSecret, "Unset a secret", nil, ok(api.SecretsVersion{})),
	}
}

func minVersion() Param {
	return query("min_version", "string", "answer once the secrets have this version; 412 if that is not soon")
}

func showSecrets() Param {
	return query("show_secrets", "boolean", "refused: values are never shown")
}
