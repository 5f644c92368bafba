package control

import (
	"net/http"

	"github.com/volant-edge/volant/api"
)

// accountRoutes are who may do what, and what an app is given: addresses, secrets, certificates.
func (s *Server) accountRoutes() []Route {
	return []Route{
		at("GET /v1/orgs", scopeRead, "org.list", s.listOrgs, "List the organizations the token may see", nil, ok(api.OrgList{})),
		at("POST /v1/orgs", scopeAdmin, "org.create", s.createOrg, "Create an organization", api.CreateOrg{}, created(api.Org{})),
		at("GET /v1/orgs/{org}", scopeRead, "org.get", s.getOrg, "Read an organization", nil, ok(api.Org{})),

		at("GET /v1/tokens", scopeAdmin, "token.list", s.listTokens, "List the tokens that the caller administers", nil, ok(api.TokenList{})),
		at("POST /v1/tokens", scopeAdmin, "token.create", s.createToken, "Create a token", api.CreateToken{}, created(api.CreatedToken{})),
		at("DELETE /v1/tokens/{token}", scopeRead, "token.delete", s.deleteToken, "Revoke a token", nil, empty(http.StatusNoContent)),
		at("GET /v1/tokens/current", scopeRead, "token.current", s.currentToken, "Read what the request's token is", nil, ok(api.CurrentTokens{})),
		at("POST /v1/tokens/authenticate", scopeRead, "token.authenticate", s.authenticateToken, "Say whether a token is good", api.AuthenticateToken{}, ok([]api.VerifiedToken{})),
		at("POST /v1/tokens/authorize", scopeRead, "token.authorize", s.authorizeToken, "Say whether a token may do something", api.AuthorizeToken{}, ok(api.AuthorizedToken{})),
		at("POST /v1/apps/{app}/deploy_token", scopeAdmin, "token.create", s.createDeployToken, "Create a token that deploys one app", api.CreateDeployToken{}, ok(api.DeployToken{})),

		at("GET /v1/apps/{app}/ip_assignments", scopeRead, "ip.list", s.listAddresses, "List an app's addresses", nil, ok(api.IPList{})),
		at("POST /v1/apps/{app}/ip_assignments", scopeDeploy, "ip.assign", s.createAddress, "Give an app an address", api.AssignIP{}, ok(api.IPAssignment{})),
		at("DELETE /v1/apps/{app}/ip_assignments/{ip}", scopeDeploy, "ip.release", s.deleteAddress, "Take an address from an app", nil, empty(http.StatusNoContent)),

		at("GET /v1/apps/{app}/secrets", scopeRead, "secret.list", s.listSecrets, "List an app's secrets, without their values", nil, ok(api.AppSecrets{}), minVersion(), showSecrets()),
		at("POST /v1/apps/{app}/secrets", scopeDeploy, "secret.set", s.setSecrets, "Set and unset secrets in one step", api.SetSecrets{}, ok(api.AppSecrets{})),
		at("GET /v1/apps/{app}/secrets/{name}", scopeRead, "secret.get", s.getSecret, "Read what may be shown of a secret", nil, ok(api.AppSecret{}), minVersion(), showSecrets()),
		at("POST /v1/apps/{app}/secrets/{name}", scopeDeploy, "secret.set", s.setSecret, "Set a secret", api.SetSecret{}, created(api.ChangedSecret{})),
		at("DELETE /v1/apps/{app}/secrets/{name}", scopeDeploy, "secret.set", s.deleteSecret, "Unset a secret", nil, ok(api.SecretsVersion{})),

		at("GET /v1/apps/{app}/certificates", scopeRead, "certificate.list", s.listCertificates, "List the host names that an app serves", nil, ok(api.CertificateList{}),
			query("filter", "string", "only names with this in them"),
			query("cursor", "string", "go on after this one"),
			query("limit", "integer", "how many, 1 to 500; 25")),
		at("POST /v1/apps/{app}/certificates", scopeDeploy, "certificate.set", s.createCertificate, "Serve a host name without a certificate of its own", api.CreateCertificate{}, created(api.Certificate{})),
		at("POST /v1/apps/{app}/certificates/custom", scopeDeploy, "certificate.set", s.createCustomCertificate, "Serve a host name with a certificate that you bring", api.CreateCustomCertificate{}, created(api.Certificate{})),
		at("POST /v1/apps/{app}/certificates/acme", scopeDeploy, "certificate.set", s.createACME, "Refused: certificates by ACME are not served yet", api.CreateCertificate{}, unserved()),
		at("GET /v1/apps/{app}/certificates/{hostname}", scopeRead, "certificate.get", s.getCertificate, "Read a host name and its certificate", nil, ok(api.Certificate{})),
		at("DELETE /v1/apps/{app}/certificates/{hostname}", scopeDeploy, "certificate.set", s.deleteCertificate, "Serve a host name no longer", nil, empty(http.StatusNoContent)),
		at("DELETE /v1/apps/{app}/certificates/{hostname}/custom", scopeDeploy, "certificate.set", s.deleteCustomCertificate, "Remove a host name's certificate", nil, ok(api.Certificate{})),
		at("POST /v1/apps/{app}/certificates/{hostname}/check", scopeRead, "certificate.check", s.checkCertificate, "Look up where a host name leads", nil, ok(api.Certificate{})),
	}
}

func minVersion() Param {
	return query("min_version", "string", "answer once the secrets have this version; 412 if that is not soon")
}

func showSecrets() Param {
	return query("show_secrets", "boolean", "refused: values are never shown")
}
